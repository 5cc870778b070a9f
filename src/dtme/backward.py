"""Backward passes of an analysis: one per task, in segments, or one batched over the tasks where that is measured to be faster.

A batched pass (`is_grads_batched`) starts every kernel once instead of K times. It wins where starting them is what costs:
small blocks and few samples. With much to compute it wins nothing and needs more memory, so there it is not tried, and the
passes go from block to block. All ways give the same gradients but for rounding, and none touches a parameter.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from dtme.cuts import FEW, Cut
from dtme.segments import Part, in_segments

Found = list[tuple[Tensor | None, ...]]
"""Per task the gradients by the inputs; `None` where the loss does not depend on one."""

MARGIN = 0.9
"""A batched pass has to be faster by more than what timing is worth."""


def one_by_one(losses: Sequence[Tensor], inputs: Sequence[Tensor]) -> Found:
    """A backward pass per loss; the last one lets go of the graph."""
    ((_, found),) = in_segments(list(losses), inputs)
    return found


def batched(losses: Sequence[Tensor], inputs: Sequence[Tensor], *, keep: bool = False) -> Found:
    """One pass for all losses, to inputs that they share; where one loss depends on an input, the others have zeros there.

    Raises:
        Exception: Some operation of the model has no batched backward, or one that is a loop (a warning of torch's).

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> [gradient.tolist() for (gradient,) in batched([x.sum(), x.square().sum()], [x])]
        [[1.0, 1.0], [2.0, 4.0]]
    """
    together = torch.stack([loss.reshape(()) for loss in losses])
    each = torch.eye(len(losses), dtype=together.dtype, device=together.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "There is a performance drop")
        found = torch.autograd.grad(together, inputs, each, retain_graph=keep, is_grads_batched=True, allow_unused=True)
    unbound = [(None,) * len(losses) if gradient is None else gradient.unbind() for gradient in found]
    return [tuple(own) for own in zip(*unbound, strict=True)]


@dataclass
class BackwardPasses:
    """Computes the gradients of batch after batch.

    With few numbers in them a pass per task and a batched one are each warmed up on one batch and timed on the next, and the
    faster goes on.

    Attributes:
        alone: Whether this process may choose: one that shares a sharded model may not.
        seconds: Per way, the time it took per number that it gave.
    """

    alone: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    _turn: int = 0

    def __call__(
        self,
        losses: list[Tensor],
        tensors: Sequence[Tensor],
        behind: Sequence[int],
        cuts: list[Cut],
        of_tasks: Sequence[Sequence[int]],
    ) -> Iterator[Part]:
        """The gradients of losses: those by some tensors at a time, as they are found.

        Args:
            losses: One per task; emptied.
            tensors: What to differentiate by.
            behind: How many of the cuts had been made when each of them was made.
            cuts: Where the graph has been cut; emptied.
            of_tasks: Per task the places of the tensors that its stream brings to the blocks.
        """
        shared = all(len(own) == len(tensors) for own in of_tasks)
        few = not cuts and all(tensor.numel() <= FEW.get(tensor.device.type, 0) for tensor in tensors)
        if self.alone and shared and few and all(loss.requires_grad for loss in losses):
            yield list(range(len(tensors))), self._faster(losses, tensors)
        else:
            yield from in_segments(losses, tensors, behind, cuts, of_tasks=of_tasks)

    def _faster(self, losses: Sequence[Tensor], inputs: Sequence[Tensor]) -> Found:
        way = self._way()
        if way == "one by one":
            return self._timed(way, lambda: one_by_one(losses, inputs), inputs)
        try:
            # The graph is kept while nothing is known of the model: where it cannot be batched, it is gone through again.
            return self._timed(way, lambda: batched(losses, inputs, keep=way not in self.seconds), inputs)
        except Exception:
            self.seconds[way] = float("inf")
            return one_by_one(losses, inputs)

    def _way(self) -> str:
        turn, self._turn = self._turn, self._turn + 1
        if turn < 2 or self.seconds.get("batched") == float("inf"):
            return "one by one"
        if turn < 4:
            return "batched"
        return "batched" if self.seconds["batched"] < MARGIN * self.seconds["one by one"] else "one by one"

    def _timed(self, way: str, compute: Callable[[], Found], inputs: Sequence[Tensor]) -> Found:
        """Compute, and remember how long it took in the last of the turns in which ways are tried."""
        if self._turn > 4:
            return compute()
        device = inputs[0].device
        began = _now(device)
        found = compute()
        self.seconds[way] = (_now(device) - began) / sum(tensor.numel() for tensor in inputs)
        return found


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
