"""Which tasks share a stream in which block, read off a plan without a model."""

from __future__ import annotations

from collections.abc import Sequence

from dtme.plan import Plan
from dtme.streams import Groups, refine


def groups_per_block(plan: Plan, blocks: Sequence[str]) -> list[Groups]:
    """The streams of every block, each given by the tasks it serves.

    Raises:
        ValueError: The plan names a block that is not among `blocks`.

    Example:
        >>> plan = Plan(tasks=("a", "b", "c"), modulate={"x.1": ("b",)})
        >>> groups_per_block(plan, ["x.0", "x.1"])
        [(('a', 'b', 'c'),), (('a', 'c'), ('b',))]
    """
    unknown = [block for block in plan.blocks if block not in blocks]
    if unknown:
        raise ValueError(
            f"blocks={list(blocks)!r} lacks {unknown[0]!r}, which the plan names: give every block of the trunk, in order."
        )
    groups: Groups = (plan.tasks,)
    per_block = []
    for block in blocks:
        groups = refine(groups, plan.parting(block))
        per_block.append(groups)
    return per_block


def untangled(tasks: Sequence[str], per_block: Sequence[Groups]) -> list[str]:
    """An order of the tasks in which those that share a stream are neighbours, in every block.

    Example:
        >>> untangled(("a", "b", "c"), [(("a", "c"), ("b",))])
        ['a', 'c', 'b']
    """

    def path(task: str) -> list[int]:
        return [next(place for place, group in enumerate(groups) if task in group) for groups in per_block]

    return sorted(tasks, key=path)
