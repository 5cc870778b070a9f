"""Backward passes in segments, so that the gradients at one block at a time need be held for all tasks, not those of all blocks.

The graph is cut behind every block. All tasks go back from their losses to the cuts that these reach, then from the last cut to
those in front of it, and so on: what is found at a block is complete, and can be compared and let go, before the next is begun.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dtme.cuts import Cut

Part = tuple[list[int], list[tuple[Tensor | None, ...]]]
"""Places of tensors, and per task the gradients by these; `None` where its loss does not depend on one."""
Roots = list[tuple[Tensor, Tensor | None]]
"""Where a task goes back from, and its gradients there; none where the task has none."""


def in_segments(
    losses: list[Tensor],
    tensors: Sequence[Tensor],
    behind: Sequence[int] | None = None,
    cuts: list[Cut] | None = None,
    *,
    of_tasks: Sequence[Sequence[int]] | None = None,
) -> Iterator[Part]:
    """The gradients of all losses by all tensors, as soon as they are complete.

    They are those of one backward pass per loss through a graph without cuts, and cost no more: what lies between two cuts is
    gone through once per loss, and what one segment reads of another on the way past a cut twice. Without cuts it is one pass
    per loss.

    Args:
        losses: One per task; emptied, so that the graph in front of them can be let go.
        tensors: What to differentiate by.
        behind: How many of the cuts had been made when each of them was made.
        cuts: In the order in which they were made; emptied as well.
        of_tasks: Per task the places of the tensors that it may depend on; `None` is all.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> y = 2 * x
        >>> end = y.square()
        >>> z = end.detach().requires_grad_()
        >>> losses = [z.sum() + y.sum(), 3 * z.sum()]
        >>> for places, gradients in in_segments(losses, [x, y, z], [0, 0, 1], [Cut([end], [z], [z])]):
        ...     print(places, [[own.tolist() for own in of_task] for of_task in gradients])
        [2] [[[1.0, 1.0]], [[3.0, 3.0]]]
        [0, 1] [[[10.0, 10.0], [5.0, 5.0]], [[24.0, 24.0], [12.0, 12.0]]]
    """
    cuts = [] if cuts is None else cuts
    behind = [0] * len(tensors) if behind is None else behind
    own_places = [set(range(len(tensors)))] * len(losses) if of_tasks is None else [set(own) for own in of_tasks]
    roots: list[Roots] = [[(loss, None)] if loss.requires_grad else [] for loss in losses]
    losses.clear()
    left = list(range(len(tensors)))
    held: list[dict[Hashable, Tensor]] = [{} for _ in roots]
    end_of = {
        id(made): (place, "end", number) for place, own in enumerate(cuts) for number, made in enumerate(own.replaced)
    }
    while left:
        _go_back(roots, held, {place: tensors[place] for place in left} | _at_cuts(cuts), own_places, last=not cuts)
        whole = [place for place in left if behind[place] >= len(cuts)]
        left = [place for place in left if behind[place] < len(cuts)]
        if whole:
            yield whole, [tuple(_at(place, tensors, end_of, own) for place in whole) for own in held]
        if cuts:
            ends = cuts.pop().ends
            roots = [_seeded(ends, len(cuts), own) for own in held]
            del ends  # the roots alone hold what is in front of them


def _at_cuts(cuts: Sequence[Cut]) -> dict[Hashable, Tensor]:
    """The tensors on both sides of the cuts that are left: the ends, too, may be read by what has them from elsewhere."""
    found: dict[Hashable, Tensor] = {}
    for place, own in enumerate(cuts):
        found |= {(place, "beginning", number): tensor for number, tensor in enumerate(own.beginnings)}
        found |= {(place, "end", number): tensor for number, tensor in enumerate(own.ends)}
    return found


def _seeded(ends: Sequence[Tensor], place: int, held: dict[Hashable, Tensor]) -> Roots:
    """What a block made, with the gradients that have come to where it was cut off."""
    seeds = [held.pop((place, "beginning", number), None) for number in range(len(ends))]
    return [(end, seed) for end, seed in zip(ends, seeds, strict=True) if seed is not None]


def _at(
    place: int, tensors: Sequence[Tensor], end_of: Mapping[int, Hashable], held: dict[Hashable, Tensor]
) -> Tensor | None:
    """The gradient by one of the tensors.

    What takes the place of what a block made has that one's gradients as well: a block may hand its output on to others beside.
    """
    parts = [held.pop(place, None), held.pop(end_of.get(id(tensors[place])), None)]
    known = [part for part in parts if part is not None]
    return sum(known[1:], known[0]) if known else None


def _go_back(
    roots: list[Roots],
    held: Sequence[dict[Hashable, Tensor]],
    wanted: Mapping[Hashable, Tensor],
    own_places: Sequence[set[int]],
    *,
    last: bool,
) -> None:
    """Add to what each task holds what its roots give, and let go of the roots.

    A graph is kept until nothing holds it: what was read on the way past a cut, as keys of an early block by a late one, is
    gone through from both. Only the last segment is let go of by its last task.
    """
    for task, own in enumerate(held):
        starts, roots[task] = roots[task], []
        if not starts:
            continue
        keep = not last or any(roots)
        places = [place for place in wanted if not isinstance(place, int) or place in own_places[task]]
        if not places:
            continue
        found = torch.autograd.grad(
            [root for root, _ in starts],
            [wanted[place] for place in places],
            [seed for _, seed in starts],
            retain_graph=keep,
            allow_unused=True,
        )
        for place, gradient in zip(places, found, strict=True):
            if gradient is not None:
                own[place] = own[place] + gradient if place in own else gradient
