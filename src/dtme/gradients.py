"""The losses of a batch, checked, and each task's gradient by the tokens that its stream brings to the blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations, islice
from typing import Any

import torch
from torch import Tensor, nn

from dtme.backward import BackwardPasses, one_by_one
from dtme.capture import Capture

TaskLosses = Callable[[nn.Module, Any], Mapping[str, Tensor]]
"""Yours: `task_losses(model, batch)` gives each task's loss, a scalar; a task the batch says nothing about is left out."""


def checked_losses(
    model: nn.Module,
    task_losses: TaskLosses,
    batch: Any,
    number: int,
    caught: Capture,
    expected: tuple[str, ...] | None,
) -> dict[str, Tensor]:
    """The losses of a batch, checked."""
    with caught.reading(batch):
        losses = dict(task_losses(model, batch))
    for task, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"task_losses: the loss of task {task!r} is no scalar tensor but {shape}. Reduce it, .mean() say."
            )
        if not bool(loss.isfinite()):
            raise ValueError(
                f"the loss of task {task!r} is {loss.item()} in batch {number}; {_first_not_finite(caught)}. "
                "Analyse a model whose losses are finite."
            )
        if expected is not None and task not in expected:
            raise ValueError(
                f"task_losses gave task {task!r} in batch {number} of the second round, unknown in the first: {expected}."
            )
    return losses


def _first_not_finite(caught: Capture) -> str:
    for name, entry in caught.entries.items():
        if not entry.finite():
            return f"the first tokens that are not finite enter block {name!r}"
    last = next(reversed(caught.entries), "none")
    return f"all tokens that enter the blocks are finite (the last is {last!r}), so the fault lies behind them"


def token_gradients(
    losses: Mapping[str, Tensor], caught: Capture, number: int, backward: BackwardPasses | None = None
) -> dict[str, dict[str, Tensor]]:
    """Per task and block the gradient of the task's loss by the tokens its stream brings there."""
    gradients: dict[str, dict[str, Tensor]] = {}
    reached: dict[str, list[bool]] = {}
    inputs = [[tokens for entry in caught.entries.values() for tokens in entry.of_task(task)] for task in losses]
    run_once = all(len(entry.runs) == 1 for entry in caught.entries.values())
    passes = backward if backward is not None and run_once else one_by_one
    every = passes(list(losses.values()), inputs) if losses else []
    for task, own_inputs in zip(losses, inputs, strict=True):
        found = every.pop(0)  # so that what padding is taken out of does not lie beside the whole
        if all(gradient is None for gradient in found):
            raise ValueError(
                f"the loss of task {task!r} does not reach the trunk: no token that enters {', '.join(caught.entries)} moves it. "
                "Is the trunk's output detached, or the loss computed under no_grad?"
            )
        gradients[task], reached[task] = {}, [gradient is not None for gradient in found]
        whole = iter(zip(found, own_inputs, strict=True))
        for name, entry in caught.entries.items():
            own = [
                torch.zeros_like(t) if gradient is None else gradient for gradient, t in islice(whole, len(entry.runs))
            ]
            gradients[task][name] = entry.valid_samples(own)
            if not bool(gradients[task][name].isfinite().all()):
                raise ValueError(
                    f"the gradient of task {task!r} by the tokens entering block {name!r} is not finite in batch {number}."
                )
    _check_runs_shared(reached, caught, number)
    return gradients


def _check_runs_shared(reached: Mapping[str, list[bool]], caught: Capture, number: int) -> None:
    """Where blocks run several times, each two tasks have to read a run in common: no token has both gradients otherwise."""
    if all(len(entry.runs) == 1 for entry in caught.entries.values()):
        return
    for one, other in combinations(reached, 2):
        if not any(both == (True, True) for both in zip(reached[one], reached[other], strict=True)):
            block = next(name for name, entry in caught.entries.items() if len(entry.runs) > 1)
            raise ValueError(
                f"tasks {one!r} and {other!r} read different runs of block {block!r} in batch {number}. Compute their losses "
                "from one forward pass; where each has inputs of its own, give these as batches of their own."
            )
