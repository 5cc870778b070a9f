"""Which tasks share a stream in which block, read off a plan without a model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from dtme.plan.plan import Plan
from dtme.streams.groups import Groups, refine


def groups_per_block(plan: Plan, blocks: Sequence[str]) -> list[Groups]:
    """The streams of every block, each given by the tasks it serves; those that part in a part of it have parted at its end.

    Raises:
        ValueError: The plan names a block that is not among `blocks`.

    Example:
        >>> plan = Plan(tasks=("a", "b", "c"), modulate={"x.1": ("b",)})
        >>> groups_per_block(plan, ["x.0", "x.1"])
        [(('a', 'b', 'c'),), (('a', 'c'), ('b',))]
    """
    groups: Groups = (plan.tasks,)
    per_block = []
    places = {name: place_of(name, blocks) for name in plan.blocks}
    for place in range(len(blocks)):
        own = (name for name, at in places.items() if at == place)
        groups = refine(groups, [task for name in own for task in plan.parting(name)])
        per_block.append(groups)
    return per_block


def place_of(name: str, blocks: Sequence[str]) -> int:
    """The place of the block that a plan names, or of the block that a part it names lies in.

    Raises:
        ValueError: There is none.

    Example:
        >>> place_of("x.1.mlp", ["x.0", "x.1", "x.10"])
        1
    """
    for place, block in enumerate(blocks):
        if f"{name}.".startswith(f"{block}."):
            return place
    raise ValueError(
        f"blocks={list(blocks)!r} lacks {name!r}, which the plan names: give every block of the trunk, in order."
    )


def untangled(tasks: Sequence[str], per_block: Sequence[Groups]) -> list[str]:
    """An order of the tasks in which those that share a stream are neighbours, in every block.

    Example:
        >>> untangled(("a", "b", "c"), [(("a", "c"), ("b",))])
        ['a', 'c', 'b']
    """

    def path(task: str) -> list[int]:
        return [next(place for place, group in enumerate(groups) if task in group) for groups in per_block]

    return sorted(tasks, key=path)


def without_common_prefix(names: Sequence[str]) -> tuple[str, list[str]]:
    """The dotted prefix that all names share, and what of each name remains.

    Example:
        >>> without_common_prefix(["trunk.blocks.0", "trunk.blocks.1"])
        ('trunk.blocks.', ['0', '1'])
        >>> without_common_prefix(["trunk.blocks.0"])
        ('', ['trunk.blocks.0'])
    """
    if len(names) < 2:
        return "", list(names)
    parts = [name.split(".")[:-1] for name in names]
    shared = [levels[0] for levels in takewhile(lambda levels: len(set(levels)) == 1, zip(*parts, strict=False))]
    prefix = "".join(f"{level}." for level in shared)
    return prefix, [name[len(prefix) :] for name in names]
