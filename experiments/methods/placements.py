"""Where a method of the table inserts what: by conflict, at random, in the last blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from dtme.plan.plan import Plan
from dtme.report.report import ConflictReport
from experiments.dense.recipe import Recipe

Planner = Callable[[ConflictReport, Recipe, int], Plan]
"""From what was measured, the recipe and the seed of a row to its plan."""


def by_conflict(
    *,
    modulation: bool = False,
    expansion: bool = False,
    select: Literal["conflict", "random", "reversed", "swapped"] = "conflict",
    fraction: float | None = None,
    rank: int = 0,
    tokens: int = 1,
    modulator: Literal["affine", "batchnorm"] = "affine",
) -> Planner:
    """Blocks as a report chooses them; with a `rank`, the modulators' blocks get low-rank updates as well."""

    def plan(report: ConflictReport, recipe: Recipe, seed: int) -> Plan:
        return report.plan(
            fraction=fraction or recipe.fraction,
            select=select,
            modulation=modulation,
            expansion=expansion,
            adaptation=rank > 0,
            rank=rank or 4,
            tokens_per_task=tokens,
            modulator=modulator,
            seed=seed,
        )

    return plan


def last_blocks(
    count: int | None, *, modulation: bool = False, expansion: bool = False, rank: int = 0, layers: str | None = None
) -> Planner:
    """The last blocks of the trunk, whatever was measured; `None` takes as many as the recipe's fraction."""

    def plan(report: ConflictReport, recipe: Recipe, seed: int) -> Plan:
        many = count or max(1, int(recipe.fraction * len(report.blocks) + 0.5))
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


def one_block(place: int, modulation: bool, rank: int) -> Planner:
    """One block alone, by its place in the trunk."""

    def plan(report: ConflictReport, recipe: Recipe, seed: int) -> Plan:
        return _at(report, report.blocks[place : place + 1], modulation, False, rank, None)

    return plan


def after_norm(*, entry: bool) -> Planner:
    """Modulators behind both norms of the last blocks, where attention and MLP take the tokens; at the blocks' entries, too."""

    def plan(report: ConflictReport, recipe: Recipe, seed: int) -> Plan:
        last = last_blocks(None, modulation=True)(report, recipe, seed)
        inner = {f"{block}.{part}": tasks for block, tasks in last.modulate.items() for part in ("attn", "mlp")}
        return replace(last, modulate={**last.modulate, **inner} if entry else inner)

    return plan


def beside_updates(*, rank: int, layers: str, behind_norms: bool) -> Planner:
    """Low-rank updates in the last block with modulators beside them, at its entry or behind both of its norms."""

    def plan(report: ConflictReport, recipe: Recipe, seed: int) -> Plan:
        block = report.blocks[-1]
        placed = [f"{block}.attn", f"{block}.mlp"] if behind_norms else [block]
        return replace(_at(report, [block], False, False, rank, layers), modulate=dict.fromkeys(placed, report.tasks))

    return plan


def from_the_mlp_on(count: int, rank: int = 0) -> Planner:
    """The MLP of the last block but `count - 1` and the whole blocks behind it: a copy of each per task, or updates of a `rank`.

    Streams part at that MLP, so that attention in front of it runs once for all tasks. Copies are for all tasks but one.
    """

    def plan(report: ConflictReport, recipe: Recipe, seed: int) -> Plan:
        first, *others = report.blocks[-count:]
        places = (f"{first}.mlp", *others)
        if rank:
            return Plan(report.tasks, adapt=dict.fromkeys(places, report.tasks), rank=rank)
        return Plan(report.tasks, copies=dict.fromkeys(places, report.tasks[1:]))

    return plan


def within_cost(max_cost: float, rank: int = 4) -> Planner:
    """Low-rank updates where they resolve most conflict within a budget of inference."""

    def plan(report: ConflictReport, recipe: Recipe, seed: int) -> Plan:
        return report.plan(modulation=False, expansion=False, adaptation=True, rank=rank, max_cost=max_cost)

    return plan


def recommended(report: ConflictReport, recipe: Recipe, seed: int) -> Plan:
    """The library's own default, `report.recommended()`."""
    return report.recommended()


def grown(before: Plan, wanted: Plan, report: ConflictReport) -> Plan:
    """A plan in two rounds: what was planned before stays, and blocks wanted now join it, those that conflict most first.

    It ends with as many blocks with modulators, and with task tokens, as the plan that is wanted now has.
    """

    def filled(old: Mapping[str, Sequence[str]], new: Mapping[str, Sequence[str]], scores: Tensor) -> Any:
        rest = sorted(set(new) - set(old), key=lambda block: -float(scores[report.blocks.index(block)]))
        return {**old, **{block: new[block] for block in rest[: max(0, len(new) - len(old))]}}

    return replace(
        wanted,
        modulate=filled(before.modulate, wanted.modulate, report.range_score()),
        expand=filled(before.expand, wanted.expand, report.null_score()),
        adapt=filled(before.adapt, wanted.adapt, report.range_score()),
    )


def other_tasks(planner: Planner) -> Planner:
    """The same plan with its tasks exchanged at random, none of those that have inserts for itself where that can be.

    The control for the choice of tasks: it costs what the plan costs, and differs in who gets a stream alone.
    """

    def plan(report: ConflictReport, recipe: Recipe, seed: int) -> Plan:
        made = planner(report, recipe, seed)
        placements = (made.modulate, made.expand, made.adapt)
        parting = {task for placement in placements for tasks in placement.values() for task in tasks}
        staying = [task for task in made.tasks if task not in parting]
        generator = torch.Generator().manual_seed(seed)
        order = [made.tasks[place] for place in torch.randperm(len(made.tasks), generator=generator).tolist()]
        order.sort(key=lambda task: task not in staying)  # those that stayed come first
        given = dict(zip(sorted(parting, key=made.tasks.index), order, strict=False))
        swapped = [
            {
                block: tuple(sorted((given[task] for task in tasks), key=made.tasks.index))
                for block, tasks in old.items()
            }
            for old in placements
        ]
        return replace(made, modulate=swapped[0], expand=swapped[1], adapt=swapped[2])

    return plan


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
