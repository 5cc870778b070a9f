"""Conflicts (Def. 1, Eq. 4): where the token gradients of two tasks point against each other, in either space.

Pure tensors in, counts out; a few tokens at a time, so that what is made on the way stays small. Only products between the
tasks' gradients are needed: these are projected on the smaller of the two spaces, those in the other follow by subtraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtme._precision import full_precision
from dtme._shapes import Bool, Float, Int
from dtme.measure.token_space import TokenSpace

AT_ONCE = {"cpu": 2**18, "cuda": 2**24}
"""Numbers in the gradients that are compared at once: on a CPU what its caches hold, on a GPU enough to fill it."""


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


@dataclass(frozen=True)
class Comparison:
    """What one block's gradients say.

    Attributes:
        conflicts: What was counted between the tasks.
        chance: What was counted between the gradients of different samples, at the same places.
        energy: Per task the squared norms, summed over samples and tokens.
    """

    conflicts: Conflicts
    chance: Conflicts
    energy: Float[Tensor, " tasks"]

    def __add__(self, other: Comparison) -> Comparison:
        """What two sets of tokens say together."""
        return Comparison(self.conflicts + other.conflicts, self.chance + other.chance, self.energy + other.energy)


def compare(gradients: Sequence[Float[Tensor, "samples tokens p"]], space: TokenSpace) -> Comparison:
    """Compare the gradients of all tasks by the tokens of a block.

    Args:
        gradients: One per task, zero where a token does not count.
        space: Range and null space of the block.

    Example:
        >>> space = TokenSpace(torch.eye(2), 1, torch.ones(2))
        >>> found = compare([torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[-4.0, 3.0]]])], space)
        >>> found.conflicts.in_range[0, 0, 1].item(), found.conflicts.in_null[0, 0, 1].item(), found.energy.tolist()
        (1, 0, [25.0, 25.0])
    """
    samples, _, channels = gradients[0].shape
    tokens = max(1, AT_ONCE.get(gradients[0].device.type, AT_ONCE["cuda"]) // (len(gradients) * samples * channels))
    first, *others = (
        _compare_all(torch.stack(piece, 2), space)
        for piece in zip(*(own.split(tokens, 1) for own in gradients), strict=True)
    )
    return sum(others, first)


def _compare_all(gradients: Float[Tensor, "samples tokens tasks p"], space: TokenSpace) -> Comparison:
    found = count_conflicts(mismatch_samples(gradients), space)
    apart = comparable(len(gradients), gradients.shape[2]).to(found.counted.device)
    chance = Conflicts(found.counted * apart, found.in_range * apart, found.in_null * apart)
    energy = torch.linalg.vector_norm(gradients, dim=(0, 1, 3), dtype=torch.float64).square()
    return Comparison(count_conflicts(gradients, space), chance, energy)


def count_conflicts(gradients: Float[Tensor, "samples tokens tasks p"], space: TokenSpace) -> Conflicts:
    """Count the tokens at which each two tasks conflict: `g_i . g_j <= 0` after projection, both gradients not zero.

    Args:
        gradients: `dL_i / dT` at each token, one per task; zero where a token does not count (padding).
        space: Range and null space of the block.
    """
    scaled, alive = scale_to_unit(gradients)
    in_range, in_null = multiply_projected(scaled, space)
    pairs = alive.unsqueeze(-1) & alive.unsqueeze(-2)
    pairs &= ~torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
    return Conflicts(pairs.sum(1), (pairs & (in_range <= 0)).sum(1), (pairs & (in_null <= 0)).sum(1))


def mismatch_samples(gradients: Float[Tensor, "samples tokens tasks p"]) -> Float[Tensor, "samples tokens tasks p"]:
    """The gradients of task k taken from the k-th sample further on: no two tasks' gradients are of one sample any more.

    The null hypothesis beside a rate of conflict: what two tasks' gradients at the same place agree on, or not, whatever the
    sample. Needs more samples than tasks lie between the two; `comparable` says which pairs that leaves.
    """
    return torch.stack([own.roll(-task, 0) for task, own in enumerate(gradients.unbind(2))], 2)


def comparable(samples: int, tasks: int) -> Bool[Tensor, "tasks tasks"]:
    """Which pairs of tasks `mismatch_samples` takes from different samples.

    Example:
        >>> comparable(2, 3).tolist()
        [[False, True, False], [True, False, True], [False, True, False]]
    """
    place = torch.arange(tasks)
    return (place.unsqueeze(0) - place.unsqueeze(1)) % samples != 0


def scale_to_unit(gradients: Float[Tensor, "*batch p"]) -> tuple[Float[Tensor, "*batch p"], Bool[Tensor, "*batch"]]:
    """Each gradient over its own largest magnitude, and whether it is not exactly zero.

    The division changes no sign and keeps products of tiny gradients from underflowing.
    """
    gradients = gradients.to(torch.promote_types(gradients.dtype, torch.float32))
    size = gradients.abs().amax(-1)
    alive = size > 0
    return gradients / torch.where(alive, size, 1.0).unsqueeze(-1), alive


def multiply_projected(
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
