"""The losses of a batch, checked, and each task's gradient by the tokens that its stream brings to the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from dtme.backward import BackwardPasses, one_by_one
from dtme.capture import Capture
from dtme.segments import Part

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
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Block by block, mostly from the last to the first, per task the gradient of its loss by the tokens its stream brings there.

    Raises:
        ValueError: A gradient is not finite, no gradient of a task reaches the trunk, or two tasks read different runs of a
            block; the last two are known, and raised, when all blocks are done.
    """
    if not losses:
        return
    entries = caught.entries
    inputs = [[tokens for entry in entries.values() for tokens in entry.of_task(task)] for task in losses]
    of_block = [name for name, entry in entries.items() for _ in entry.runs]
    reached = {task: [False] * len(of_block) for task in losses}
    if backward is None or len(of_block) > len(entries):
        parts: Iterable[Part] = [(list(range(len(of_block))), one_by_one(list(losses.values()), inputs))]
    else:
        parts = backward(list(losses.values()), inputs, _apart_when_repeated(caught))
    for places, found in parts:
        left = {task: dict(zip(places, own, strict=True)) for task, own in zip(losses, found, strict=True)}
        found.clear()  # so that what padding is taken out of does not lie beside the whole
        for name in dict.fromkeys(of_block[place] for place in places):
            runs = [place for place in places if of_block[place] == name]
            gradients = {}
            for (task, own), own_inputs in zip(left.items(), inputs, strict=True):
                of_runs = [own.pop(place) for place in runs]
                for place, gradient in zip(runs, of_runs, strict=True):
                    reached[task][place] = gradient is not None
                whole = [
                    torch.zeros_like(own_inputs[at]) if g is None else g for at, g in zip(runs, of_runs, strict=True)
                ]
                gradients[task] = entries[name].valid_samples(whole)
                if not bool(gradients[task].isfinite().all()):
                    raise ValueError(
                        f"the gradient of task {task!r} by the tokens entering block {name!r} is not finite in batch {number}."
                    )
            yield name, gradients
            del gradients  # while the next are made
    _check_reached(reached, caught)
    _check_runs_shared(reached, caught, number)


def _apart_when_repeated(caught: Capture) -> list[bool]:
    """Whether each block is computed again, if at all, apart from the one in front of it."""
    frames = [entry.runs[0].frame for entry in caught.entries.values()]
    return [own is None or own is not before for before, own in zip([None, *frames], frames, strict=False)]


def _check_reached(reached: Mapping[str, list[bool]], caught: Capture) -> None:
    for task, blocks in reached.items():
        if not any(blocks):
            raise ValueError(
                f"the loss of task {task!r} does not reach the trunk: no token that enters {', '.join(caught.entries)} moves it. "
                "Is the trunk's output detached, or the loss computed under no_grad?"
            )


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
