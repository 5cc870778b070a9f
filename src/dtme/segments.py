"""Backward passes in segments, so that the gradients at one block at a time need be held for all tasks, not those of all blocks.

The graph is cut behind every block. All tasks go back from their losses to the cuts that these reach, then from the last cut to
those in front of it, and so on: what is found at a block is complete, and can be compared and let go, before the next is begun.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dtme.cuts import Cut

Part = tuple[list[int], list[tuple[Tensor | None, ...]]]
"""Places of tensors, and per task the gradients by these; `None` where its loss does not depend on one."""
Root = tuple[Tensor, Tensor | None] | None
"""Where a task goes back from, and its gradient there; `None` where the task has none."""


def in_segments(
    losses: list[Tensor], tensors: Sequence[Tensor], behind: Sequence[int] | None = None, cuts: list[Cut] | None = None
) -> Iterator[Part]:
    """The gradients of all losses by all tensors, as soon as they are complete.

    They are those of one backward pass per loss through a graph without cuts, and cost no more: what lies between two cuts is
    gone through once per loss. Without cuts it is one pass per loss.

    Args:
        losses: One per task; emptied, so that the graph in front of them can be let go.
        tensors: What to differentiate by.
        behind: How many of the cuts were made before each of them.
        cuts: In the order in which they were made; emptied as well.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> y = 2 * x
        >>> end = y.square()
        >>> z = end.detach().requires_grad_()
        >>> losses = [z.sum() + y.sum(), 3 * z.sum()]
        >>> for places, gradients in in_segments(losses, [x, y, z], [0, 0, 1], [Cut(end, z)]):
        ...     print(places, [[own.tolist() for own in of_task] for of_task in gradients])
        [2] [[[1.0, 1.0]], [[3.0, 3.0]]]
        [0, 1] [[[10.0, 10.0], [5.0, 5.0]], [[24.0, 24.0], [12.0, 12.0]]]
    """
    cuts = [] if cuts is None else cuts
    behind = [0] * len(tensors) if behind is None else behind
    roots: list[Root] = [(loss, None) if loss.requires_grad else None for loss in losses]
    losses.clear()
    left = list(range(len(tensors)))
    held: list[dict[int, Tensor]] = [{} for _ in roots]  # by place, those of beginnings after those of tensors
    while left:
        known = [*left, *(len(tensors) + place for place in range(len(cuts)))]
        inputs = [*(tensors[place] for place in left), *(cut.beginning for cut in cuts)]
        _go_back(roots, held, known, inputs, last=not cuts)
        whole = [place for place in left if behind[place] >= len(cuts)]
        left = [place for place in left if behind[place] < len(cuts)]
        if whole:
            yield whole, [tuple(own.pop(place, None) for place in whole) for own in held]
        if cuts:
            end = cuts.pop().end
            seeds = [own.pop(len(tensors) + len(cuts), None) for own in held]
            roots = [None if seed is None else (end, seed) for seed in seeds]
            del end, seeds  # the roots alone hold what is in front of them


def _go_back(
    roots: list[Root],
    held: Sequence[dict[int, Tensor]],
    known: Sequence[int],
    inputs: Sequence[Tensor],
    *,
    last: bool,
) -> None:
    """Add to what each task holds what its root gives, and let go of the root.

    A graph is kept until nothing holds it: what was read on the way past a cut, as keys of an early block by a late one, is
    gone through from both. Only the last segment is let go of by its last task.
    """
    for task, own in enumerate(held):
        root, roots[task] = roots[task], None
        if root is None:
            continue
        keep = not last or any(later is not None for later in roots)
        found = torch.autograd.grad(root[0], inputs, root[1], retain_graph=keep, allow_unused=True)
        for place, gradient in zip(known, found, strict=True):
            if gradient is not None:
                own[place] = own[place] + gradient if place in own else gradient
