"""Routing: which tasks a pass computes, and which row of a batch belongs to which task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Int
from dtme.made_once import MadeOnce
from dtme.outputs import map_tensors, tensors_of
from dtme.sample_axis import leading_shape
from dtme.streams import Streams, stream_of


@dataclass
class Routing:
    """What the inserts of one model ask before they act.

    Attributes:
        model: The model `apply` was called on.
        tasks: Every task of the plan.
        active: The tasks this pass computes, in plan order.
        rows: The task of each row of the batch as an index into `tasks`, or `None` where every row serves all tasks.
        given: The shape of what the model was called on in this pass, where it tells how many samples there are.
        made: Of masks, in this pass.
    """

    model: nn.Module
    tasks: tuple[str, ...]
    active: tuple[str, ...]
    rows: Int[Tensor, " batch"] | None = None
    given: tuple[int, ...] | None = None
    made: MadeOnce = field(default_factory=MadeOnce, init=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Routing:
        """A copy of the whole model has a routing of its own; a copy of a part, of a head say, is asked for by this model."""
        if id(self.model) not in memo:
            return self
        memo[id(self)] = twin = replace(self, model=memo[id(self.model)])
        return twin


def owner_of(model: nn.Module) -> tuple[nn.Module, Any]:
    """The module `apply` was called on, the model itself or one inside a wrapper such as a compiled module, and its record.

    Raises:
        ValueError: No plan has been applied to it, or to a wrapper that is not given.
    """
    for module in model.modules():
        applied = vars(module).get("_dtme")  # its own: wrappers pass attributes of what they wrap on as theirs
        if applied is not None:
            return module, applied
    if any(name.rpartition(".")[2] == "dtme" for name, _ in model.named_modules()):
        raise ValueError(
            "this model has inserts of a plan that was applied to a model around it, which is not given. Give that one, or "
            "apply the plan to this model, before it is wrapped."
        )
    raise ValueError("this model has no inserts: call dtme.apply(model, plan) first.")


def routing_of(model: nn.Module) -> Routing:
    """The routing of a model, or of the model inside a wrapper such as DistributedDataParallel or a compiled module.

    Raises:
        ValueError: `dtme.apply` has not been called on it.
    """
    return owner_of(model)[1].routing


@contextmanager
def tasks(model: nn.Module, *names: str, per_sample: Sequence[str | int] | Tensor | None = None) -> Iterator[None]:
    """Compute some tasks only, or give each row of the batch its own task.

    With names, only the streams of these tasks are computed, and the branches of the others are given no rows, so that
    their outputs are empty. With `per_sample`, the batch is not copied into streams: each row runs through the
    modulators and task tokens of its own task, every branch sees all rows, and row `s` of a task's output means
    something where `per_sample[s]` is that task. (A branch that is told the batch size as a number cannot take no rows:
    compute such a model's tasks together, or by `per_sample`.)

    Where tasks meet again behind their branches, in a decoder with cross-task attention, they meet as computed: with
    names, the decoder gets features of these tasks alone and has to leave out those without rows; with `per_sample`, a
    row brings every task's features out of the stream of its own task.

    Of nested contexts the innermost decides. With activation checkpointing, run the backward pass inside the context
    too: it repeats the forward.

    Args:
        model: A model `dtme.apply` was called on.
        names: Tasks to compute.
        per_sample: The task of each row, as names or as indices into the plan's tasks.

    Raises:
        ValueError: An unknown task, or both or neither of `names` and `per_sample`.
    """
    routing = routing_of(model)
    if bool(names) == (per_sample is not None):
        raise ValueError("tasks(model, ...): give task names or per_sample=..., one of the two.")
    before = routing.active, routing.rows
    try:
        if per_sample is None:
            unknown = [name for name in names if name not in routing.tasks]
            if unknown:
                raise ValueError(
                    f"tasks(model, ...): unknown task {unknown[0]!r}; this model's plan has {routing.tasks}. Name some of these, "
                    "or apply a plan that has the task."
                )
            routing.active, routing.rows = tuple(task for task in routing.tasks if task in names), None
        else:
            rows = _indices(per_sample, routing.tasks, next(model.parameters()).device)
            routing.active, routing.rows = routing.tasks, rows
        yield
    finally:
        routing.active, routing.rows = before


def _indices(per_sample: Sequence[str | int] | Tensor, names: tuple[str, ...], device: torch.device) -> Tensor:
    if isinstance(per_sample, Tensor):
        if per_sample.ndim != 1 or torch.is_floating_point(per_sample):
            raise ValueError(
                f"per_sample has shape {tuple(per_sample.shape)} and type {per_sample.dtype}: give one whole number a row."
            )
        rows = per_sample.to(device=device, dtype=torch.long)
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(names):
            raise ValueError(f"per_sample holds {int(rows.min())}..{int(rows.max())}: indices into {names} are wanted.")
        return rows
    indices = []
    for row, task in enumerate(per_sample):
        if isinstance(task, str) and task in names:
            indices.append(names.index(task))
        elif isinstance(task, int) and 0 <= task < len(names):
            indices.append(task)
        else:
            raise ValueError(
                f"per_sample[{row}]={task!r}: unknown task; this model's plan has {names}. Give one of these or its index, or "
                "apply a plan that has the task."
            )
    return torch.tensor(indices, dtype=torch.long, device=device)


def begin_pass(routing: Routing, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note what the model is given. A forward pre-hook of it."""
    if not torch.compiler.is_compiling():
        routing.given = leading_shape((args, kwargs))
        routing.made.begin()


def end_pass(routing: Routing, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forget it: a part of the model may be called by itself. A forward hook of the model, called where that fails, too."""
    if not torch.compiler.is_compiling():
        routing.given = None
        routing.made.end()


def leave_trunk(
    routing: Routing, task: str, branch: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give a branch the stream of its task, or no rows where its task is not computed. A forward pre-hook."""
    if routing.rows is None and task not in routing.active:
        return _without_rows(args, kwargs)
    return map_tensors((args, kwargs), partial(stream_of, task=task))


def _without_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    leaves = [leaf._streams[0] if isinstance(leaf, Streams) else leaf for leaf in tensors_of((args, kwargs))]
    rows = next((len(leaf) for leaf in leaves if leaf.ndim), None)

    def emptied(tensor: Tensor) -> Tensor:
        own = tensor._streams[0] if isinstance(tensor, Streams) else tensor
        return own[:0] if own.ndim and len(own) == rows else own

    return map_tensors((args, kwargs), emptied)
