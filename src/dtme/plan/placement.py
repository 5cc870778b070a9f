"""Which blocks get modulators and which get task tokens: those of the highest scores, or of a control's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dtme._shapes import Float, Int
from dtme.plan.plan import Plan
from dtme.plan.rates import ConflictRates

Select = Literal["conflict", "random", "reversed", "swapped"]


@dataclass(frozen=True)
class Inserts:
    """What a plan that is made from rates may insert.

    Attributes:
        fraction: Share of the blocks that hold modulators, and of those that hold task tokens; on a budget at most.
        modulation: Modulators.
        expansion: Task tokens.
        adaptation: Low-rank updates, in the blocks of the modulators.
        tokens_per_task: Task tokens per task and block.
        modulator: Their kind.
        rank: Of the updates.

    Raises:
        ValueError: The fraction is none, or there is nothing to insert.
    """

    fraction: float = 0.5
    modulation: bool = True
    expansion: bool = True
    adaptation: bool = False
    tokens_per_task: int = 1
    modulator: Literal["affine", "batchnorm"] = "affine"
    rank: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.fraction, str) or not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction!r}: give a share of the blocks above 0 and up to 1.")
        if not (self.modulation or self.expansion or self.adaptation):
            raise ValueError("modulation=False and expansion=False: the plan would be empty. Leave one of them on.")


def place_inserts(
    rates: ConflictRates, inserts: Inserts, select: Select = "conflict", threshold: float | None = None, seed: int = 0
) -> Plan:
    """The plan without a budget (Alg. 1, second half; Sec. 5.2).

    Args:
        rates: What was measured.
        inserts: What goes to the chosen blocks.
        select: How they are chosen, as in `ConflictReport.plan`.
        threshold: The rate from which on a pair's tasks get inserts; `None` gives them to all.
        seed: For random blocks.

    Raises:
        ValueError: There is no such `select`, or the threshold is no rate.
    """
    if select not in ("conflict", "random", "reversed", "swapped"):
        raise ValueError(f"select={select!r}: choose 'conflict', 'random', 'reversed' or 'swapped'.")
    if threshold is not None and (isinstance(threshold, str) or not 0 <= threshold <= 1):
        raise ValueError(f"pair_threshold={threshold!r}: give a rate, from 0 to 1, or None for all pairs.")
    if not isinstance(seed, int):
        raise ValueError(f"seed={seed!r}: give a whole number.")
    by_range, by_null = rates.range_score(), rates.null_score()
    if select == "random":
        by_range, by_null = torch.rand(2, len(rates.blocks), generator=torch.Generator().manual_seed(seed)).unbind()
    elif select == "reversed":
        by_range, by_null = -by_range, -by_null
    elif select == "swapped":
        by_range, by_null = by_null, by_range
    count = share_of(inserts.fraction, len(rates.blocks))
    modulate = _place(rates, by_range, count, rates.range_rate, threshold)
    expand = _place(rates, by_null, count, rates.null_rate, threshold)
    return Plan(
        tasks=rates.tasks,
        modulate=modulate if inserts.modulation else {},
        expand=expand if inserts.expansion else {},
        adapt=modulate if inserts.adaptation else {},
        tokens_per_task=inserts.tokens_per_task,
        rank=inserts.rank,
        modulator=inserts.modulator,
        notes=rates.notes if select == "conflict" else (),
    )


def highest_first(scores: Float[Tensor, " blocks"]) -> Int[Tensor, " blocks"]:
    """The places of the blocks, highest score first; of blocks that tie, the later one.

    Example:
        >>> highest_first(torch.tensor([0.5, 0.7, 0.5])).tolist()
        [1, 2, 0]
    """
    scores = scores.to(torch.float64).round(decimals=12)  # scores that differ by rounding alone are equal
    return len(scores) - 1 - scores.flip(0).argsort(descending=True, stable=True)


def share_of(fraction: float, blocks: int) -> int:
    """How many of so many blocks a fraction of them is: one at least, a half rounded up.

    Example:
        >>> share_of(0.5, 5), share_of(0.1, 3)
        (3, 1)
    """
    return max(1, math.floor(fraction * blocks + 0.5))


def _place(
    rates: ConflictRates, score: Float[Tensor, " blocks"], count: int, rate: Tensor, threshold: float | None
) -> dict[str, tuple[str, ...]]:
    """For so many blocks of the highest score the tasks of the pairs that conflict often enough, where there are any."""
    placed = {}
    for block in sorted(highest_first(score)[:count].tolist()):
        fighting = rate[block].amax(0) >= (-1.0 if threshold is None else threshold)
        placed[rates.blocks[block]] = tuple(
            task for task, fights in zip(rates.tasks, fighting.tolist(), strict=True) if fights
        )
    return {block: tasks for block, tasks in placed.items() if tasks}
