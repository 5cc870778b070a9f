"""What a reader should know beside the figures, in sentences: what the samples have settled, and what is noise."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from dtme._shapes import Float, Int
from dtme.plan.rates import ConflictRates

FEW = 0.9
"""The share of what could be compared from which on the report says that it was left out."""


def describe_choice(
    blocks: Sequence[str],
    chosen: Sequence[Collection[int]],
    undecided: Sequence[Sequence[bool]],
    level: float,
    samples: int,
) -> list[str]:
    """Which blocks the samples have settled for the default plan, and between which it is a coin flip.

    A block is settled whose side of the cut no further samples would change, at a level, but for scores that tie.

    Args:
        blocks: All of them.
        chosen: For modulators and for task tokens, the places of the half with the highest scores.
        undecided: For both, whether each block is open.
        level: Of confidence.
        samples: So far.

    Example:
        >>> describe_choice(["x.0", "x.1", "x.2", "x.3"], [{1, 3}, {0, 1}], [[False] * 4, [True, False, True, False]], 0.95, 64)
        ['Modulators, in half of the blocks, at 95% after 64 samples: the choice is settled.',
         'Task tokens, in half of the blocks, at 95% after 64 samples: settled are x.1; a coin flip between x.0, x.2.']
    """
    found = []
    for kind, places, open_ in zip(("Modulators", "Task tokens"), chosen, undecided, strict=True):
        settled = [name for place, name in enumerate(blocks) if place in places and not open_[place]]
        flipped = [name for place, name in enumerate(blocks) if open_[place]]
        where = f"{kind}, in half of the blocks, at {level:.0%} after {samples} samples: "
        if not flipped:
            found.append(f"{where}the choice is settled.")
        elif len(flipped) == len(blocks):
            found.append(f"{where}a coin flip between all blocks.")
        else:
            sure = f"settled are {', '.join(settled)}; " if settled else ""
            found.append(f"{where}{sure}a coin flip between {', '.join(flipped)}.")
    return found


def compare_to_chance(rates: ConflictRates) -> Iterator[tuple[str, Int[Tensor, " blocks"]]]:
    """For each space whose chance was measured: 1 per block above it, -1 below, 0 where the samples do not tell them apart."""
    null = (rates.null_score(), rates.null_chance_score(), rates.null_halfwidth, rates.null_chance_halfwidth)
    in_range = (rates.range_score(), rates.range_chance_score(), rates.range_halfwidth, rates.range_chance_halfwidth)
    for space, (score, chance, *halfwidths) in (("Range", in_range), ("Null", null)):
        if chance is None or not bool(chance.isfinite().any()):
            continue
        own, of_chance = (mean_over_pairs(width) for width in halfwidths if width is not None)
        apart = (score - chance).abs() > torch.hypot(own, of_chance)
        yield space, torch.where(apart, score - chance, 0.0).sign().int()


def describe_chance(rates: ConflictRates) -> list[str]:
    """Whether scores differ from chance: from the same rates between gradients of different samples."""
    found = []
    for space, signs in compare_to_chance(rates):
        alike = [name for name, sign in zip(rates.blocks, signs.tolist(), strict=True) if not sign]
        if not alike:
            told = "every score differs from chance"
        elif len(alike) == len(rates.blocks):
            told = "no score differs from chance"
        else:
            told = f"scores differ from chance, but not those of {', '.join(alike)}"
        found.append(f"{space} space, at {rates.level:.0%}: {told}.")
    return found


def describe_zeros(rates: ConflictRates) -> list[str]:
    """Blocks in which hardly a token could be compared, because a gradient is zero there, or no more than rounding."""
    few = [f"{name} {share:.1%}" for name, share in zip(rates.blocks, rates.zero_share, strict=True) if share > FEW]
    return [f"Of all tokens and pairs left out, because a gradient is zero there: {', '.join(few)}."] if few else []


def mean_over_pairs(halfwidth: Float[Tensor, "blocks tasks tasks"]) -> Float[Tensor, " blocks"]:
    """A bound for the half-width of a mean over pairs: the mean of theirs, as if they moved together."""
    first, second = torch.triu_indices(*halfwidth.shape[1:], offset=1)
    return halfwidth[:, first, second].mean(1)
