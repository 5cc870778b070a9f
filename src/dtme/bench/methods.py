"""The methods that a table compares: what each does that plain multi-task training does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from dtme.bench.recipe import Recipe
from dtme.plan import Plan
from dtme.report import ConflictReport

Planner = Callable[[ConflictReport, Recipe, int], Plan]
"""From what was measured, the recipe and the seed of a row to its plan."""


@dataclass(frozen=True)
class Method:
    """One row of a table; whatever is left out is as in plain multi-task training.

    Attributes:
        name: As the command line and the table call it.
        says: What it does, for the notes below a table.
        plan: What is inserted.
        lasts: Another method's name and a currency: train for as many steps as that method's training buys in it.
        longer: Train for so many times the steps.
    """

    name: str
    says: str
    plan: Planner | None = None
    lasts: tuple[str, Literal["time", "FLOPs"]] | None = None
    longer: float = 1.0


def by_conflict(
    *,
    modulation: bool = False,
    expansion: bool = False,
    select: Literal["conflict", "random", "reversed", "swapped"] = "conflict",
    fraction: float | None = None,
    rank: int = 0,
) -> Planner:
    """Blocks as a report chooses them; with a `rank`, the modulators' blocks get low-rank updates as well."""

    def plan(report: ConflictReport, recipe: Recipe, seed: int) -> Plan:
        made = report.plan(
            fraction=fraction or recipe.fraction,
            select=select,
            modulation=modulation,
            expansion=expansion,
            adaptation=rank > 0,
            seed=seed,
        )
        return replace(made, rank=rank) if rank else made

    return plan


def last_blocks(
    count: int | None, *, modulation: bool = False, expansion: bool = False, rank: int = 0, layers: str | None = None
) -> Planner:
    """The last blocks of the trunk, whatever was measured; `None` takes as many as the recipe's fraction."""

    def plan(report: ConflictReport, recipe: Recipe, seed: int) -> Plan:
        many = count or max(1, round(recipe.fraction * len(report.blocks)))
        return _at(report, report.blocks[-many:], modulation, expansion, rank, layers)

    return plan


def at_random_behind_the_same_block(report: ConflictReport, recipe: Recipe, seed: int) -> Plan:
    """Random blocks for modulators and for tokens, as many as by conflict, streams parting at the same block.

    The control for placement: it costs what the conflict-guided plan costs, and differs from it in the choice alone.
    """
    chosen = report.plan(fraction=recipe.fraction)
    first = min(report.blocks.index(block) for block in chosen.blocks)
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return [
            first + place for place in torch.randperm(len(report.blocks) - first, generator=generator)[:count].tolist()
        ]

    modulated, expanded = draw(len(chosen.modulate)), draw(len(chosen.expand))
    if first not in (*modulated, *expanded):
        modulated[0] = first
    return replace(chosen, modulate=_all_tasks(report, sorted(modulated)), expand=_all_tasks(report, sorted(expanded)))


def _all_tasks(report: ConflictReport, places: Iterable[int]) -> dict[str, tuple[str, ...]]:
    return {report.blocks[place]: report.tasks for place in places}


def _at(
    report: ConflictReport, blocks: Sequence[str], modulation: bool, expansion: bool, rank: int, layers: str | None
) -> Plan:
    placed = dict.fromkeys(blocks, report.tasks)
    return Plan(
        tasks=report.tasks,
        modulate=placed if modulation else {},
        expand=placed if expansion else {},
        adapt=placed if rank else {},
        rank=rank or 4,
        adapt_layers=layers,
    )


METHODS = (
    Method("ST", "one model per task"),
    Method("MT", "plain multi-task training, the weighted sum of the losses"),
    Method("MT 2x", "MT for twice the steps", longer=2.0),
    Method("TM", "modulators by range conflict", by_conflict(modulation=True)),
    Method("TE", "task tokens by null conflict", by_conflict(expansion=True)),
    Method("TM+TE", "the paper's method", by_conflict(modulation=True, expansion=True)),
    Method("MT as long as TM+TE", "MT for the wall-clock of TM+TE", lasts=("TM+TE", "time")),
    Method("MT FLOPs of TM+TE", "MT for the FLOPs of TM+TE", lasts=("TM+TE", "FLOPs")),
    Method("TM+TE random", "TM+TE in random blocks", by_conflict(modulation=True, expansion=True, select="random")),
    Method(
        "TM+TE random, same cost",
        "TM+TE in random blocks, streams parting where they do by conflict",
        at_random_behind_the_same_block,
    ),
    Method(
        "TM+TE reversed",
        "TM+TE where conflict is least",
        by_conflict(modulation=True, expansion=True, select="reversed"),
    ),
    Method(
        "TM+TE swapped",
        "modulators by null conflict, tokens by range conflict",
        by_conflict(modulation=True, expansion=True, select="swapped"),
    ),
    Method("TM+TE all", "TM+TE in every block", by_conflict(modulation=True, expansion=True, fraction=1.0)),
    Method("TM+TE last", "TM+TE in the last blocks", last_blocks(None, modulation=True, expansion=True)),
    Method("TM last block", "modulators in the last block", last_blocks(1, modulation=True)),
    Method("Adapt by conflict", "rank-4 updates by range conflict", by_conflict(rank=4)),
    Method(
        "TM+TE+Adapt",
        "TM+TE, and rank-4 updates where modulators are",
        by_conflict(modulation=True, expansion=True, rank=4),
    ),
    Method("Adapt last half", "rank-4 updates in the last half", last_blocks(None, rank=4)),
    Method("Adapt last 2", "rank-4 updates in the last two blocks", last_blocks(2, rank=4)),
    Method("Adapt last block", "rank-4 updates in the last block", last_blocks(1, rank=4)),
    Method("Adapt r1 last block", "rank-1 updates in the last block", last_blocks(1, rank=1)),
    Method("Adapt r8 last block", "rank-8 updates in the last block", last_blocks(1, rank=8)),
    Method("Adapt r16 last block", "rank-16 updates in the last block", last_blocks(1, rank=16)),
    Method(
        "TM+Adapt last block",
        "modulators and rank-4 updates in the last block",
        last_blocks(1, modulation=True, rank=4),
    ),
    Method(
        "MT as long as Adapt last block",
        "MT for the wall-clock of Adapt last block",
        lasts=("Adapt last block", "time"),
    ),
    Method("MT as long as Adapt last 2", "MT for the wall-clock of Adapt last 2", lasts=("Adapt last 2", "time")),
)
"""In the order of every table."""


def method_of(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: There is none; the message lists them.
    """
    for method in METHODS:
        if method.name == name:
            return method
    raise ValueError(f"methods: there is no {name!r}. Choose from: {', '.join(method.name for method in METHODS)}.")
