"""Say so where training would change nothing: the first backward pass of each task after `apply` is watched, once.

A modulator in a block whose output no loss reads, or in a trunk that runs under `no_grad`, trains without complaint and
without effect. While tasks wait for their first backward pass, hooks on the parameters note what receives a gradient;
when the pass ends, what received none is named in one warning, and the hooks go.

No gradient is a fault only where none comes to what leaves the block either. A block that did not run (LayerDrop), a branch that
begins at zero (LayerScale, ReZero) and one that is dropped for a whole batch (stochastic depth) learn in later steps.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from dtme._pytree import tensors_of
from dtme._shapes import Bool
from dtme.inserts.call_state import CallState
from dtme.inserts.insert import Insert, inserted_names, inserts_of
from dtme.streams.groups import Groups
from dtme.streams.routing import Routing

Place = tuple[str, str, str]
"""A task, what it has been given (`"modulator"`, `"task tokens"`, `"adaptation"`, `"copy"`) and the block."""

Came = dict[str, list[Tensor]]
"""By task, whether a gradient came to what left a block in one run of it; empty lists where none has come yet."""


class FirstBackward:
    """Which tasks wait for their first backward pass, and what that pass has reached so far.

    A task is judged at the end of the first backward pass through a forward that computed it, in training and with
    gradients on; tasks left out by `dtme.tasks` go on waiting. Where the graph is retained, further passes through it may
    follow, and the next forward judges. `torch.autograd.grad` accumulates nothing and ends no wait; compiled code is not
    watched.
    """

    def __init__(self, routing: Routing, tasks: Iterable[str]) -> None:
        self.routing = routing
        self.waiting = set(tasks)
        self.handle: RemovableHandle | None = None
        self._running_now: list[tuple[str, Came]] = []
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a model read from a file, starts between two passes: no hook of a parameter travels with it."""
        return {"routing": self.routing, "waiting": set(self.waiting), "handle": self.handle}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._running_now = []
        self._forget()

    def _forget(self) -> None:
        self._hooks: list[RemovableHandle] = []
        self._computed: set[str] = set()
        self._received: dict[int, Bool[Tensor, " tasks"] | None] = {}
        self._ran: list[tuple[str, Came]] = []
        self._running = self._accumulating = self._retained = False

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._forget()

    def stop(self) -> None:
        """Take out every hook; nothing is watched any more."""
        self._unhook()
        self.waiting.clear()
        self.routing.on_leave = None
        if self.handle is not None:
            self.handle.remove()

    def note_run(self, name: str, tokens: Tensor, state: CallState) -> None:
        """Note that a block ran, and watch whether a gradient comes to the tokens that leave it."""
        if torch._C._current_graph_task_id() != -1:
            return  # activation checkpointing repeats a forward
        rows = state.rows
        tasks = [task for group in state.groups for task in group]
        came: Came = {task: [] for task in tasks if rows is None or bool((rows == state.tasks.index(task)).any())}
        self._running_now.append((name, came))
        if tokens.requires_grad:
            of_rows = None if rows is None else [state.tasks[row] for row in rows.tolist()]
            tokens.register_hook(partial(_note_gradient, came, state.groups, of_rows, state.batch))

    def take_runs(self) -> list[tuple[str, Came]]:
        """What ran in the forward that has just ended."""
        runs, self._running_now = self._running_now, []
        return runs

    def after_forward(self, model: nn.Module, output: Any, runs: list[tuple[str, Came]]) -> None:
        """Put hooks on the outputs, to learn which forward a backward pass belongs to, and on the parameters."""
        if torch._C._current_graph_task_id() != -1:
            return  # activation checkpointing repeats a forward
        if self._retained:
            self._judge(model)
        elif self._running:
            self._unhook()  # an error broke the last backward pass off
        choice = self.routing.choice
        rows = choice.rows
        present = choice.active if rows is None else {self.routing.tasks[row] for row in rows.tolist()}
        if not self.waiting.intersection(present):
            return
        self._ran += runs
        for tensor in tensors_of(output):
            if tensor.requires_grad:
                begin = partial(_begun, ref(self), ref(model), frozenset(self.waiting.intersection(present)))
                tensor.register_hook(begin)
        if not self._hooks:
            inserted = inserted_names(model)
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and isinstance(parameter, nn.Parameter):
                    note = partial(_noted, ref(self), name if name in inserted else "")
                    self._hooks.append(parameter.register_post_accumulate_grad_hook(note))

    def _begin(self, model: nn.Module, present: frozenset[str]) -> None:
        self._computed |= present
        if not self._running:
            self._running = True
            Variable._execution_engine.queue_callback(partial(self._end, model))

    def _note(self, inserted: str, parameter: Tensor) -> None:
        self._accumulating = True
        if inserted:
            gradient = parameter.grad
            # An optimiser may have used the gradient and dropped it; of one that is sharded each process sees a part.
            if gradient is None or type(gradient) is not Tensor:
                self._received[id(parameter)] = None
                return
            rows = gradient.reshape(1, -1) if ".copies." in inserted else gradient.flatten(1)  # a copy is of one task
            self._received[id(parameter)] = (rows != 0).any(1)

    def _end(self, model: nn.Module) -> None:
        self._running = False
        if not self._accumulating:
            self._computed.clear()
        elif _graph_is_kept():
            self._retained = True
        else:
            self._judge(model)

    def _judge(self, model: nn.Module) -> None:
        lacking: list[Place] = []
        silent: list[str] = []
        for task in sorted(self._computed, key=self.routing.tasks.index):
            reached = dict(self._reached(model, task))
            if reached and not any(reached.values()):
                silent.append(task)
            lacking += [place for place, yes in reached.items() if not yes and task not in silent]
        self.waiting -= self._computed
        self._unhook()
        if not self.waiting:
            self.stop()
        if silent or lacking:
            warnings.warn(_message(silent, lacking, self.routing.tasks), UserWarning, stacklevel=2)

    def _reached(self, model: nn.Module, task: str) -> Iterator[tuple[Place, bool]]:
        """What a task has been given and can train, and whether a gradient came to it, or is to come in later steps."""
        for insert in inserts_of(model).values():
            # A kind is reached if one of its parameters is: low-rank updates start with B = 0, where A's gradient is zero.
            kinds: dict[str, list[bool]] = defaultdict(list)
            led_to = False
            for own, parameter in insert.named_parameters():
                holders = insert.tasks_of(own)
                if task in holders and parameter.requires_grad:
                    led_to |= id(parameter) in self._received
                    rows = self._received.get(id(parameter), torch.zeros(len(holders)))
                    kinds[_kind_of(own)].append(rows is None or bool(rows[holders.index(task)]))
            for kind, reached in kinds.items():
                if any(reached) or not self._waits(insert, task, led_to=led_to):
                    yield (task, kind, insert.name), any(reached)

    def _waits(self, insert: Insert, task: str, *, led_to: bool) -> bool:
        """Whether what a task has in a block got no gradient in this step and yet gets one in others.

        The block did not run, or a gradient came to what leaves it; or the block is a part of one to which a gradient came, and a
        gradient of nothing but zeros was led into it.
        """
        runs = [came[task] for name, came in self._ran if name == insert.name and task in came]
        if not runs or any(map(bool, chain(*runs))):
            return True
        around = insert.outer
        while around is not None and led_to:
            if any(map(bool, chain(*(came.get(task, ()) for name, came in self._ran if name == around.name)))):
                return True
            around = around.outer
        return False


# A hook of a tensor is held where Python's garbage collector does not look: what it held in turn would never be freed.


def _begun(
    watching: ReferenceType[FirstBackward], model: ReferenceType[nn.Module], present: frozenset[str], gradient: Tensor
) -> None:
    first, alive = watching(), model()
    if first is not None and alive is not None:
        first._begin(alive, present)


def _noted(watching: ReferenceType[FirstBackward], inserted: str, parameter: Tensor) -> None:
    first = watching()
    if first is not None:
        first._note(inserted, parameter)


def _kind_of(own: str) -> str:
    kinds = {"tokens": "task tokens", "low_rank": "adaptation", "copies": "copy"}
    return kinds.get(own.split(".")[0], "modulator")


def _note_gradient(came: Came, groups: Groups, of_rows: list[str] | None, dim: int, gradient: Tensor) -> None:
    if _is_batched(gradient):  # several at once, of which nobody can tell zeros
        for flags in came.values():
            flags.append(torch.tensor(True))
        return
    if of_rows is None:
        parts = gradient.unflatten(dim, (len(groups), gradient.shape[dim] // len(groups))).unbind(dim)
        flags = [(group, (part != 0).any()) for group, part in zip(groups, parts, strict=True)]
    else:
        flags = [((task,), (row != 0).any()) for task, row in zip(of_rows, gradient.unbind(dim), strict=True)]
    for group, flag in flags:
        for task in group:
            came[task].append(flag)


def _is_batched(gradient: Tensor) -> bool:
    batched: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return batched.is_batchedtensor(gradient) or batched.is_legacy_batchedtensor(gradient)


def watch(model: nn.Module, routing: Routing, tasks: Iterable[str]) -> FirstBackward:
    """Watch the first backward pass of each of the tasks through a model."""
    first = FirstBackward(routing, tasks)
    if first.waiting:
        first.handle = model.register_forward_hook(partial(_after_forward, first))
        routing.on_leave = first.note_run
    return first


def _after_forward(first: FirstBackward, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return
    runs = first.take_runs()
    if model.training and torch.is_grad_enabled():
        first.after_forward(model, output, runs)


def _graph_is_kept() -> bool:
    """Whether the backward pass that is running was called with `retain_graph=True`."""
    return torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue]


def _message(silent: list[str], lacking: list[Place], tasks: tuple[str, ...]) -> str:
    lines = ["dtme.apply: some of what was inserted got no gradient on the first backward pass, and so does not learn."]
    for task in silent:
        others = ", ".join(repr(other) for other in tasks if other not in silent)
        alone = f" If it has no labels in this batch, compute the others alone: with dtme.tasks(model, {others})."
        lines.append(
            f"Task {task!r}: none of its inserts. Its loss took no part in the pass, or was zero, or its tokens were detached "
            f"(torch.no_grad, detach) on their way.{alone if others else ''}"
        )
    lines += [
        f"Task {task!r}: its {kind} in block {block!r}. What leaves this block does not reach the task's loss: does its "
        "branch read earlier blocks only? If it is meant so, leave it out of the plan."
        for task, kind, block in lacking
    ]
    return "\n".join(lines)
