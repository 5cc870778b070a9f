"""F-measure from counts."""

from __future__ import annotations

from torch import Tensor

from dtme._shapes import Float, Int


def best_f(
    hits: Int[Tensor, " t"], predicted: Int[Tensor, " t"], true: Int[Tensor, ""], beta_squared: float = 1.0
) -> Float[Tensor, ""]:
    r"""Highest F-measure over thresholds, in per cent.

    $$ \frac{(1 + \beta^2) P R}{\beta^2 P + R}
       = \frac{(1 + \beta^2) \, \text{hits}}{\beta^2 \, \text{true} + \text{predicted}} $$

    with precision $P$ = hits / predicted and recall $R$ = hits / true. The right-hand side needs no special case
    where one of them is 0 / 0.

    Args:
        hits: Per threshold, predictions that are true.
        predicted: Per threshold, predictions.
        true: What there was to find.
        beta_squared: Weight of recall against precision.

    Returns:
        The highest value; NaN only if nothing was true and no threshold predicted anything.

    Example:
        >>> import torch
        >>> best_f(torch.tensor([6, 4]), torch.tensor([12, 4]), torch.tensor(8))  # P, R = 1/2, 3/4 and 1, 1/2
        tensor(66.6667)
    """
    f = 100 * (1 + beta_squared) * hits.double() / (beta_squared * true + predicted)
    defined = f[f.isfinite()]
    return (defined if len(defined) else f).max().float()
