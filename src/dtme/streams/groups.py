"""Groups: which tasks share which stream."""

from __future__ import annotations

from collections.abc import Sequence

Groups = tuple[tuple[str, ...], ...]
"""Which tasks each stream serves, in order."""


def refine(groups: Groups, parting: Sequence[str]) -> Groups:
    """Groups once each of the `parting` tasks goes its own way; the others of a group stay together.

    Example:
        >>> refine((("depth", "semseg", "edges"),), ["semseg"])
        (('depth', 'edges'), ('semseg',))
    """
    if all(len(group) == 1 for group in groups):
        return groups
    order = {task: place for place, task in enumerate(task for group in groups for task in group)}
    parts: list[tuple[str, ...]] = []
    for group in groups:
        staying = tuple(task for task in group if task not in parting)
        parts += [staying] if staying else []
        parts += [(task,) for task in group if task in parting]
    return tuple(sorted(parts, key=lambda tasks: order[tasks[0]]))


def common(first: Groups, second: Groups) -> Groups:
    """The coarsest groups that split no stream of either.

    Example:
        >>> common((("depth", "semseg"), ("edges",)), (("depth",), ("semseg", "edges")))
        (('depth',), ('semseg',), ('edges',))
    """
    if first == second:
        return first
    both = [tuple(task for task in one if task in other) for one in first for other in second]
    return tuple(tasks for tasks in both if tasks)
