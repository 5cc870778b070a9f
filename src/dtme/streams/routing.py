"""Routing: which tasks a pass computes, and which row of a batch belongs to which task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from dtme._pytree import map_tensors, tensors_of
from dtme._shapes import Int
from dtme._tracing import OfThread, runs_as_written
from dtme.streams.tensor import Streams, stream_of


@dataclass(frozen=True)
class Choice:
    """What a pass computes.

    Attributes:
        active: The tasks, in plan order.
        rows: The task of each row of the batch as an index into all tasks, or `None` where every row serves all tasks.
    """

    active: tuple[str, ...]
    rows: Int[Tensor, " batch"] | None = None


@dataclass
class Pass:
    """What is known of the pass of a model that is running in a thread.

    Attributes:
        given: The shape of what the model was called on, where it tells how many samples there are.
        before_inserts: Whether the model has been called and no block with an insert has, yet.
    """

    given: tuple[int, ...] | None = None
    before_inserts: bool = False


class Routing:
    """What the inserts of one model ask before they act; each thread, and each coroutine, has an answer of its own.

    Attributes:
        model: The model `apply` was called on.
        tasks: Every task of the plan.
        latest: The choice made last, for passes that are repeated on the way back, where no context is known.
        on_leave: Told what leaves each block, by the block's name, while someone wants to know.
    """

    def __init__(self, model: nn.Module, tasks: tuple[str, ...]) -> None:
        self.model = model
        self.tasks = tasks
        self.all = self.latest = Choice(tasks)
        self.on_leave: Callable[[str, Tensor, Any], None] | None = None
        self._running = OfThread(Pass)

    @property
    def running(self) -> Pass:
        """The pass that is running in this thread."""
        return self._running.own

    @property
    def choice(self) -> Choice:
        """What a pass in this context computes."""
        for routing, choice in reversed(_CHOSEN.get()):
            if routing is self:
                return choice
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return self.latest
        return self.all

    def __deepcopy__(self, memo: dict[int, Any]) -> Routing:
        """A copy of the whole model has a routing of its own; a copy of a part, of a head say, is asked for by this model."""
        if id(self.model) not in memo:
            return self
        memo[id(self)] = twin = Routing(memo[id(self.model)], self.tasks)
        twin.on_leave = copy.deepcopy(self.on_leave, memo)
        return twin


_CHOSEN: ContextVar[tuple[tuple[Routing, Choice], ...]] = ContextVar("dtme.tasks", default=())
"""Choices of the contexts that are entered, the innermost last."""


def owner_of(model: nn.Module) -> tuple[nn.Module, Any]:
    """The module `apply` was called on, the model itself or one inside a wrapper such as a compiled module, and its record.

    Raises:
        ValueError: No plan has been applied to it, or to a wrapper that is not given.
    """
    for module in model.modules():
        applied = vars(module).get("_dtme")  # its own: wrappers pass attributes of what they wrap on as theirs
        if applied is not None:
            return module, applied
    if any(getattr(module, "is_inserted", False) for module in model.modules()):
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
    too: it repeats the forward. A compiled model is one graph since torch 2.14; before, it leaves its graph at each
    insert.

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
    entry = routing, _chosen(routing, model, names, per_sample)
    _CHOSEN.set((*_CHOSEN.get(), entry))
    routing.latest = entry[1]
    try:
        yield
    finally:  # contexts may be left in another order than they were entered in
        _CHOSEN.set(tuple(other for other in _CHOSEN.get() if other is not entry))
        routing.latest = routing.choice


def _chosen(
    routing: Routing, model: nn.Module, names: tuple[str, ...], per_sample: Sequence[str | int] | Tensor | None
) -> Choice:
    if per_sample is not None:
        return Choice(routing.tasks, _indices(per_sample, routing.tasks, next(model.parameters()).device))
    unknown = [name for name in names if name not in routing.tasks]
    if unknown:
        raise ValueError(
            f"tasks(model, ...): unknown task {unknown[0]!r}; this model's plan has {routing.tasks}. Name some of these, "
            "or apply a plan that has the task."
        )
    return Choice(tuple(task for task in routing.tasks if task in names))


def _indices(per_sample: Sequence[str | int] | Tensor, names: tuple[str, ...], device: torch.device) -> Tensor:
    if isinstance(per_sample, Tensor):
        if per_sample.ndim != 1 or per_sample.is_floating_point() or per_sample.dtype == torch.bool:
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
        elif isinstance(task, Integral) and not isinstance(task, bool) and 0 <= int(task) < len(names):
            indices.append(int(task))
        else:
            raise ValueError(
                f"per_sample[{row}]={task!r}: unknown task; this model's plan has {names}. Give one of these or its index, or "
                "apply a plan that has the task."
            )
    return torch.tensor(indices, dtype=torch.long, device=device)


@runs_as_written
def begin_pass(routing: Routing, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note what the model is given. A forward pre-hook of it."""
    if not torch.compiler.is_compiling():
        routing.running.given = leading_shape((args, kwargs))
        routing.running.before_inserts = True


@runs_as_written
def end_pass(routing: Routing, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forget it: a part of the model may be called by itself. A forward hook of the model, called where that fails, too."""
    if not torch.compiler.is_compiling():
        routing.running.given = None
        routing.running.before_inserts = False


@runs_as_written
def leave_trunk(
    routing: Routing, task: str, branch: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> Any:
    """Give a branch the stream of its task, or no rows where its task is not computed. A forward pre-hook.

    A module of a task that runs before any insert does, an adapter of the task's inputs, gets what it is given. Who copies hooks
    to another module, quantisation say, may forget that they take named arguments; then there are none.
    """
    choice = routing.choice
    if choice.rows is None and task not in choice.active and not routing.running.before_inserts:
        changed = _without_rows(args, kwargs or {})
    else:
        changed = map_tensors((args, kwargs or {}), partial(stream_of, task=task))
    return changed[0] if kwargs is None else changed


def _without_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    leaves = [leaf._streams[0] if isinstance(leaf, Streams) else leaf for leaf in tensors_of((args, kwargs))]
    rows = next((len(leaf) for leaf in leaves if leaf.ndim), None)

    def emptied(tensor: Tensor) -> Tensor:
        own = tensor._streams[0] if isinstance(tensor, Streams) else tensor
        return own[:0] if own.ndim and len(own) == rows else own

    return map_tensors((args, kwargs), emptied)


def leading_shape(inputs: Any) -> tuple[int, ...] | None:
    """The shape of the first tensor of a model's inputs, where those of two dimensions and more agree how many samples lead.

    Example:
        >>> import torch
        >>> leading_shape({"words": torch.zeros(4, 9), "mask": torch.ones(4, 9), "temperature": torch.tensor(1.0)})
        (4, 9)
        >>> leading_shape((torch.zeros(9, 2), torch.zeros(4, 9, 8)))
    """
    shapes = [tuple(tensor.shape) for tensor in tensors_of(inputs) if tensor.ndim > 1]
    return shapes[0] if len({shape[0] for shape in shapes}) == 1 else None
