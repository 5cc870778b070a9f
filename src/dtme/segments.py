"""Backward passes in segments, so that the gradients of one block at a time need be held for all tasks, not those of all blocks.

Where every way from the losses to the blocks in front goes through one tensor, as through the tokens that enter a block of a
plain trunk, the gradients by that tensor are all that the blocks in front need. All tasks go back to it, their gradients
behind it are compared and let go, and from it they go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

if TYPE_CHECKING:
    from torch.autograd.graph import GradientEdge, Node

Part = tuple[list[int], list[tuple[Tensor | None, ...]]]
"""Places of tensors, and per task the gradients by these; `None` where its loss does not depend on one."""


def in_segments(
    losses: Sequence[Tensor], tensors: Sequence[Tensor], may_end: Sequence[bool] | None = None
) -> Iterator[Part]:
    """The gradients of all losses by all tensors, segment by segment from the losses back.

    They are those of one backward pass per loss to all tensors, and cost no more: each segment is gone through once per loss.

    Args:
        losses: One per task.
        tensors: What to differentiate by.
        may_end: At which of them a segment may end; `None` for all. Where activations of several blocks are computed again
            together, a segment that ends among them has all of them computed again.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> y = 2 * x
        >>> z = y.square()
        >>> for places, gradients in in_segments([z.sum(), 3 * z.sum()], [x, y, z]):
        ...     print(places, [own.tolist() for (own,) in gradients])
        [2] [[1.0, 1.0], [3.0, 3.0]]
        [1] [[4.0, 4.0], [12.0, 12.0]]
        [0] [[8.0, 8.0], [24.0, 24.0]]
    """
    seeds: list[tuple[Tensor, Tensor | None] | None] = [(loss, None) if loss.requires_grad else None for loss in losses]
    for places in _segments(losses, tensors, [True] * len(tensors) if may_end is None else may_end):
        found = _gradients(seeds, [tensors[place] for place in places])
        end = tensors[places[-1]]
        seeds = [None if own[-1] is None else (end, own[-1]) for own in found]
        yield places, found
        found.clear()  # while the next are made


def _gradients(
    seeds: Sequence[tuple[Tensor, Tensor | None] | None], wanted: Sequence[Tensor]
) -> list[tuple[Tensor | None, ...]]:
    """Per task, from where it starts with what gradient; the last one lets go of the graph."""
    found: list[tuple[Tensor | None, ...]] = []
    for place, seed in enumerate(seeds):
        if seed is None:
            found.append((None,) * len(wanted))
            continue
        last = all(later is None for later in seeds[place + 1 :])
        found.append(torch.autograd.grad(seed[0], wanted, seed[1], retain_graph=not last, allow_unused=True))
    return found


def _segments(losses: Sequence[Tensor], tensors: Sequence[Tensor], may_end: Sequence[bool]) -> list[list[int]]:
    """Places of the tensors of each segment, from the losses back; the last place of each, but of the last one, is its end.

    A tensor is an end if no edge of the graph, in an order in which every node comes before those that it leads to, leads
    past it: then there is no way around it.
    """
    edges = [get_gradient_edge(tensor) if tensor.requires_grad else None for tensor in tensors]
    roots = [get_gradient_edge(loss) for loss in losses if loss.requires_grad]
    order = _order([root.node for root in roots], {edge.node for edge in edges if edge is not None})
    position = {node: place for place, node in enumerate(order)}
    furthest, entered = _leading_past(order, position, roots)
    where = [len(order) if edge is None else position.get(edge.node, len(order)) for edge in edges]
    segments: list[list[int]] = [[]]
    for place in sorted(range(len(tensors)), key=lambda place: where[place]):
        segments[-1].append(place)
        edge, at = edges[place], where[place]
        if edge is None or at == len(order) or furthest[at] > at or entered[at] != {edge.output_nr}:
            continue
        # A hook of the tensor's would run twice: when its gradient is found, and when it is gone on from.
        if may_end[place] and not tensors[place]._backward_hooks:
            segments.append([])
    return segments if segments[-1] else segments[:-1]


def _order(roots: Sequence[Node], wanted: set[Node]) -> list[Node]:
    """The nodes between the roots and those wanted, each before all that it leads to."""
    finished: dict[Node, bool] = {}  # in the order in which they are, and whether they lead to one that is wanted
    begun: set[Node] = set()
    for root in roots:
        stack = [(root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                behind = (after for after, _ in node.next_functions if after is not None)
                finished[node] = node in wanted or any(finished[after] for after in behind)
            elif node not in begun:
                begun.add(node)
                stack.append((node, True))
                stack += [
                    (after, False) for after, _ in node.next_functions if after is not None and after not in begun
                ]
    return [node for node in reversed(finished) if finished[node]]


def _leading_past(
    order: Sequence[Node], position: Mapping[Node, int], roots: Sequence[GradientEdge]
) -> tuple[list[int], list[set[int]]]:
    """For each node the furthest that any node in front leads to, or a loss begins at, and by which outputs it is entered."""
    entered: list[set[int]] = [set() for _ in order]
    furthest: list[int] = []
    most = 0

    def enter(node: Node | None, output: int) -> None:
        nonlocal most
        if node is not None and node in position:
            most = max(most, position[node])
            entered[position[node]].add(output)

    for root in roots:
        enter(root.node, root.output_nr)
    for node in order:
        furthest.append(most)
        for after, output in node.next_functions:
            enter(after, output)
    return furthest, entered
