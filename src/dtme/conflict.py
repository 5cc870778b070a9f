"""Conflicts (Def. 1, Eq. 4): where the token gradients of two tasks point against each other, in either space.

Pure tensors in, counts out. Only products between the tasks' gradients are needed, so the gradients are projected on the
smaller of the two spaces, and the products in the other follow by subtraction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtme._shapes import Bool, Float, Int
from dtme.full_precision import full_precision
from dtme.token_space import TokenSpace


@dataclass(frozen=True)
class Conflicts:
    """Per sample and pair of tasks, how many tokens were compared and how many conflict.

    Attributes:
        counted: Tokens where the gradients of both tasks are not exactly zero.
        in_range: Of these, tokens that conflict in the range space.
        in_null: Of these, tokens that conflict in the null space.
    """

    counted: Int[Tensor, "samples tasks tasks"]
    in_range: Int[Tensor, "samples tasks tasks"]
    in_null: Int[Tensor, "samples tasks tasks"]

    def __add__(self, other: Conflicts) -> Conflicts:
        """What is counted over the tokens of both."""
        return Conflicts(self.counted + other.counted, self.in_range + other.in_range, self.in_null + other.in_null)


def token_conflicts(gradients: Float[Tensor, "samples tokens tasks p"], space: TokenSpace) -> Conflicts:
    """Count the tokens at which each two tasks conflict: `g_i . g_j <= 0` after projection, both gradients not zero.

    Args:
        gradients: `dL_i / dT` at each token, one per task; zero where a token does not count (padding).
        space: Range and null space of the block.
    """
    scaled, alive = unit_size(gradients)
    in_range, in_null = projected_products(scaled, space)
    pairs = alive.unsqueeze(-1) & alive.unsqueeze(-2)
    pairs &= ~torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
    return Conflicts(pairs.sum(1), (pairs & (in_range <= 0)).sum(1), (pairs & (in_null <= 0)).sum(1))


def mismatched(gradients: Float[Tensor, "samples tokens tasks p"]) -> Float[Tensor, "samples tokens tasks p"]:
    """The gradients of task k taken from the k-th sample further on: no two tasks' gradients are of one sample any more.

    The null hypothesis beside a rate of conflict: what two tasks' gradients at the same place agree on, or not, whatever the
    sample. Needs more samples than tasks lie between the two; `comparable` says which pairs that leaves.
    """
    return torch.stack([own.roll(-task, 0) for task, own in enumerate(gradients.unbind(2))], 2)


def comparable(samples: int, tasks: int) -> Bool[Tensor, "tasks tasks"]:
    """Which pairs of tasks `mismatched` takes from different samples.

    Example:
        >>> comparable(2, 3).tolist()
        [[False, True, False], [True, False, True], [False, True, False]]
    """
    place = torch.arange(tasks)
    return (place.unsqueeze(0) - place.unsqueeze(1)) % samples != 0


def unit_size(gradients: Float[Tensor, "*batch p"]) -> tuple[Float[Tensor, "*batch p"], Bool[Tensor, "*batch"]]:
    """Each gradient over its own largest magnitude, and whether it is not exactly zero.

    The division changes no sign and keeps products of tiny gradients from underflowing.
    """
    gradients = gradients.to(torch.promote_types(gradients.dtype, torch.float32))
    size = gradients.abs().amax(-1)
    alive = size > 0
    return gradients / torch.where(alive, size, 1.0).unsqueeze(-1), alive


def projected_products(
    gradients: Float[Tensor, "*batch tasks p"], space: TokenSpace
) -> tuple[Float[Tensor, "*batch tasks tasks"], Float[Tensor, "*batch tasks tasks"]]:
    """`g_{R,i} . g_{R,j}` and `g_{N,i} . g_{N,j}` for all pairs of tasks.

    The smaller space is projected on; the other's products are the difference to the unprojected ones, and are computed
    directly where that difference is at the level of rounding: that of the gradients' type, so no product may be less exact.
    """
    range_basis = space.range_basis.to(gradients)
    null_basis = space.null_basis.to(gradients)
    range_is_smaller = space.rank <= len(space.basis) // 2
    small, large = (range_basis, null_basis) if range_is_smaller else (null_basis, range_basis)
    with full_precision(gradients.device):
        whole = gradients @ gradients.mT
        near = gradients @ small
        near = near @ near.mT
        far = whole - near
        norms = whole.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        unsure = far.abs() <= 64 * torch.finfo(far.dtype).eps * norms.unsqueeze(-1) * norms.unsqueeze(-2)
        places = unsure.any(-1).any(-1)
        if bool(places.any()):
            direct = gradients[places] @ large
            far[places] = torch.where(unsure[places], direct @ direct.mT, far[places])
    return (near, far) if range_is_smaller else (far, near)
