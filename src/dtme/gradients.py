"""The losses of a batch, checked, and each task's gradient by the tokens that its stream brings to the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from dtme.backward import BackwardPasses
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
    losses: dict[str, Tensor], caught: Capture, number: int, backward: BackwardPasses | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Block by block, mostly from the last to the first, per task the gradient of its loss by the tokens its stream brings there.

    The losses are emptied: as long as one is held, so is the graph in front of it.

    Raises:
        ValueError: A gradient is not finite, no gradient of a task reaches the trunk, or two tasks read different runs of a
            block; the last two are known, and raised, when all blocks are done.
    """
    if not losses:
        return
    tasks, roots = tuple(losses), list(losses.values())
    losses.clear()
    tensors, behind, places_of = _read_by(tasks, caught)
    of_tasks = [[place for places in own.values() for place in places] for own in places_of.values()]
    passes = BackwardPasses(alone=False) if backward is None else backward
    parts = passes(roots, tensors, behind, caught.cuts, of_tasks)
    reached: dict[str, dict[str, list[bool]]] = {task: {} for task in tasks}
    for places, found in parts:
        left = {task: dict(zip(places, own, strict=True)) for task, own in zip(tasks, found, strict=True)}
        found.clear()  # so that what padding is taken out of does not lie beside the whole
        for name, entry in caught.entries.items():
            if places_of[tasks[0]][name][0] not in places:
                continue
            gradients = {}
            for task, own in left.items():
                of_runs = [own.pop(place) for place in places_of[task][name]]
                reached[task][name] = [gradient is not None for gradient in of_runs]
                whole = [
                    torch.zeros_like(tokens) if gradient is None else gradient
                    for tokens, gradient in zip(entry.of_task(task), of_runs, strict=True)
                ]
                gradients[task] = entry.valid_samples(whole)
                if not bool(gradients[task].isfinite().all()):
                    raise ValueError(
                        f"the gradient of task {task!r} by the tokens entering block {name!r} is not finite in batch {number}."
                    )
            yield name, gradients
            del gradients  # while the next are made
    _check_reached(reached, caught)
    _check_runs_shared(reached, caught, number)


def _read_by(tasks: Sequence[str], caught: Capture) -> tuple[list[Tensor], list[int], dict[str, dict[str, list[int]]]]:
    """The tensors that entered blocks, how many cuts were made before each, and by task and block the places of its own.

    All runs of a block are wanted at once, and so count as made when the first of them was.
    """
    tensors: list[Tensor] = []
    behind: list[int] = []
    places_of: dict[str, dict[str, list[int]]] = {task: {} for task in tasks}
    for name, entry in caught.entries.items():
        known: dict[int, int] = {}
        for task in tasks:
            own = entry.of_task(task)
            for tokens in own:
                if id(tokens) not in known:
                    known[id(tokens)] = len(tensors)
                    tensors.append(tokens)
            places_of[task][name] = [known[id(tokens)] for tokens in own]
        behind += [min(run.behind for run in entry.runs)] * len(known)
    return tensors, behind, places_of


def _check_reached(reached: Mapping[str, Mapping[str, list[bool]]], caught: Capture) -> None:
    for task, blocks in reached.items():
        if not any(map(any, blocks.values())):
            raise ValueError(
                f"the loss of task {task!r} does not reach the trunk: no token that enters {', '.join(caught.entries)} moves it. "
                "Is the trunk's output detached, or the loss computed under no_grad?"
            )


def _check_runs_shared(reached: Mapping[str, Mapping[str, list[bool]]], caught: Capture, number: int) -> None:
    """Where blocks run several times, each two tasks have to read a run in common: no token has both gradients otherwise."""
    if all(len(entry.runs) == 1 for entry in caught.entries.values()):
        return
    for one, other in combinations(reached, 2):
        runs = (zip(own, reached[other][name], strict=True) for name, own in reached[one].items())
        if not any(both == (True, True) for of_block in runs for both in of_block):
            block = next(name for name, entry in caught.entries.items() if len(entry.runs) > 1)
            raise ValueError(
                f"tasks {one!r} and {other!r} read different runs of block {block!r} in batch {number}. Compute their losses "
                "from one forward pass; where each has inputs of its own, give these as batches of their own."
            )
