"""Fair weights: the weights of the tasks by which an update shares the gain alpha-fairly.

    J J^T w = w^(-1 / alpha),    w > 0

The condition is where the gradient of a convex function vanishes,

    f(w) = 1/2 w^T J J^T w - sum_i phi(w_i),    phi' (w) = w^(-1 / alpha),

so that there is one solution, and Newton's method with a line search finds it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dtme._shapes import Float

RIDGE = 1e-6
"""Added to the squared length, 1, of each normalised gradient: where gradients cancel exactly there is no solution else."""


def fair_weights(products: Float[Tensor, "tasks tasks"], *, alpha: float) -> Float[Tensor, " tasks"]:
    """Weights w > 0 with `products @ w = w^(-1 / alpha)`.

    The gradients are taken at length one first, which makes the system as well conditioned as the tasks' directions let it
    be: for `y_i = |g_i| w_i` and the cosines C it reads `C y = |g|^(1 / alpha - 1) y^(-1 / alpha)`.

    Args:
        products: The Gramian `J J^T` in float64, its diagonal positive.
        alpha: Above 0.

    Raises:
        ValueError: `alpha` is not above 0.
        FloatingPointError: Newton's method did not arrive.

    Example:
        >>> fair_weights(torch.tensor([[4.0, 0.0], [0.0, 0.25]], dtype=torch.float64), alpha=1.0)
        tensor([0.5000, 2.0000], dtype=torch.float64)
    """
    if not alpha > 0:
        raise ValueError(f"alpha={alpha}: give a number above 0 (1 is proportional fairness).")
    lengths = products.diagonal().sqrt()
    power = 1 / alpha
    wanted = lengths ** (power - 1)
    wanted_scale = wanted.mean()  # y carries it as a factor, taken out so that the search starts near its end
    wanted = wanted / wanted_scale
    cosines = products / lengths.outer(lengths) + RIDGE * torch.eye(len(products), dtype=products.dtype)

    def slope(y: Tensor) -> Tensor:
        return cosines @ y - wanted * y**-power

    y = wanted ** (alpha / (alpha + 1))
    for _ in range(200):
        residual = slope(y)
        curvature = cosines + torch.diag(wanted * power * y ** (-power - 1))
        direction = -torch.linalg.solve(curvature, residual)
        change = float((direction / y).abs().max())
        if change < 1e-6:  # Newton's error is about its square then
            return (y + direction) * wanted_scale ** (alpha / (alpha + 1)) / lengths
        length = 1.0
        if change > 0.1:
            shrinking = float((-direction / y).max())
            length = min(1.0, 0.95 / shrinking) if shrinking > 0 else 1.0
            # f is convex: where its slope at the end of the step points far back, half of the step is better.
            while float(slope(y + length * direction) @ direction) > 0.5 * float(-residual @ direction):
                length /= 2
        y = y + length * direction
    raise FloatingPointError(f"no {alpha}-fair weights were found for the products {products.tolist()}.")
