"""The losses of a batch, checked, and each task's gradient by the tokens that its stream brings to the blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dtme.capture import Capture
from dtme.streams import stream_of

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


def token_gradients(losses: Mapping[str, Tensor], caught: Capture, number: int) -> dict[str, dict[str, Tensor]]:
    """Per task and block the gradient of the task's loss by the tokens its stream brings there."""
    gradients: dict[str, dict[str, Tensor]] = {}
    for place, (task, loss) in enumerate(losses.items()):
        inputs = [stream_of(entry.tokens, task) for entry in caught.entries.values()]
        found: tuple[Tensor | None, ...] = (None,) * len(inputs)
        if loss.requires_grad:
            last = place + 1 == len(losses)
            found = torch.autograd.grad(loss, inputs, retain_graph=not last, allow_unused=True)
        if all(gradient is None for gradient in found):
            raise ValueError(
                f"the loss of task {task!r} does not reach the trunk: no token that enters {', '.join(caught.entries)} moves it. "
                "Is the trunk's output detached, or the loss computed under no_grad?"
            )
        gradients[task] = {}
        for (name, entry), gradient, tokens in zip(caught.entries.items(), found, inputs, strict=True):
            whole = torch.zeros_like(tokens) if gradient is None else gradient
            if not bool(whole.isfinite().all()):
                raise ValueError(
                    f"the gradient of task {task!r} by the tokens entering block {name!r} is not finite in batch {number}."
                )
            gradients[task][name] = entry.valid_samples(whole)
    return gradients
