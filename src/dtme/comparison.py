"""One block's token gradients, compared over a few tokens at a time, so that what the comparison makes on the way stays small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtme._shapes import Float
from dtme.conflict import Conflicts, comparable, mismatched, token_conflicts
from dtme.token_space import TokenSpace

AT_ONCE = {"cpu": 2**18, "cuda": 2**24}
"""Numbers in the gradients that are compared at once: on a CPU what its caches hold, on a GPU enough to fill it."""


@dataclass(frozen=True)
class Compared:
    """What one block's gradients say.

    Attributes:
        conflicts: What was counted between the tasks.
        chance: What was counted between the gradients of different samples, at the same places.
        energy: Per task the squared norms, summed over samples and tokens.
    """

    conflicts: Conflicts
    chance: Conflicts
    energy: Float[Tensor, " tasks"]

    def __add__(self, other: Compared) -> Compared:
        """What two sets of tokens say together."""
        return Compared(self.conflicts + other.conflicts, self.chance + other.chance, self.energy + other.energy)


def compared(gradients: Sequence[Float[Tensor, "samples tokens p"]], space: TokenSpace) -> Compared:
    """Compare the gradients of all tasks by the tokens of a block.

    Args:
        gradients: One per task, zero where a token does not count.
        space: Range and null space of the block.

    Example:
        >>> space = TokenSpace(torch.eye(2), 1, torch.ones(2))
        >>> found = compared([torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[-4.0, 3.0]]])], space)
        >>> found.conflicts.in_range[0, 0, 1].item(), found.conflicts.in_null[0, 0, 1].item(), found.energy.tolist()
        (1, 0, [25.0, 25.0])
    """
    samples, _, channels = gradients[0].shape
    tokens = max(1, AT_ONCE.get(gradients[0].device.type, AT_ONCE["cuda"]) // (len(gradients) * samples * channels))
    first, *others = (
        _of(torch.stack(piece, 2), space) for piece in zip(*(own.split(tokens, 1) for own in gradients), strict=True)
    )
    return sum(others, first)


def _of(gradients: Float[Tensor, "samples tokens tasks p"], space: TokenSpace) -> Compared:
    found = token_conflicts(mismatched(gradients), space)
    apart = comparable(len(gradients), gradients.shape[2]).to(found.counted.device)
    chance = Conflicts(found.counted * apart, found.in_range * apart, found.in_null * apart)
    energy = torch.linalg.vector_norm(gradients, dim=(0, 1, 3), dtype=torch.float64).square()
    return Compared(token_conflicts(gradients, space), chance, energy)
