"""Say so where training would change nothing: the first backward pass of each task after `apply` is watched, once.

A modulator in a block whose output no loss reads, or in a trunk that runs under `no_grad`, trains without complaint and
without effect. While tasks wait for their first backward pass, hooks on the parameters note what receives a gradient;
when the pass ends, what received none is named in one warning, and the hooks go.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from dtme._shapes import Bool
from dtme.insert import Insert
from dtme.outputs import tensors_of
from dtme.routing import Routing

Place = tuple[str, str, str]
"""A task, what it has been given (`"modulator"`, `"task tokens"`, `"adaptation"`, `"copy"`) and the block."""

_STOCHASTIC_DEPTH = re.compile(r"drop_?path|stochastic_?depth", re.IGNORECASE)


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
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a model read from a file, starts between two passes: no hook of a parameter travels with it."""
        return {"routing": self.routing, "waiting": set(self.waiting), "handle": self.handle}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._hooks: list[RemovableHandle] = []
        self._computed: set[str] = set()
        self._received: dict[str, Bool[Tensor, " tasks"] | None] = {}
        self._running = self._accumulating = self._retained = False

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._forget()

    def stop(self) -> None:
        """Take out every hook; nothing is watched any more."""
        self._unhook()
        self.waiting.clear()
        if self.handle is not None:
            self.handle.remove()

    def after_forward(self, model: nn.Module, output: Any) -> None:
        """Put hooks on the outputs, to learn which forward a backward pass belongs to, and on the parameters."""
        if torch._C._current_graph_task_id() != -1:
            return  # activation checkpointing repeats a forward
        if self._retained:
            self._judge(model)
        elif self._running:
            self._unhook()  # an error broke the last backward pass off
        rows = self.routing.rows
        present = self.routing.active if rows is None else {self.routing.tasks[row] for row in rows.tolist()}
        if not self.waiting.intersection(present):
            return
        for tensor in tensors_of(output):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._begin, model, self.waiting.intersection(present)))
        if not self._hooks:
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and isinstance(parameter, nn.Parameter):
                    note = partial(self._note, name if ".dtme." in f".{name}" else None)
                    self._hooks.append(parameter.register_post_accumulate_grad_hook(note))

    def _begin(self, model: nn.Module, present: set[str], gradient: Tensor) -> None:
        self._computed |= present
        if not self._running:
            self._running = True
            Variable._execution_engine.queue_callback(partial(self._end, model))

    def _note(self, inserted: str | None, parameter: Tensor) -> None:
        self._accumulating = True
        if inserted is not None:
            gradient = parameter.grad
            # An optimiser may have used the gradient and dropped it; of one that is sharded each process sees a part.
            if gradient is None or type(gradient) is not Tensor:
                self._received[inserted] = None
                return
            rows = gradient.reshape(1, -1) if ".copies." in inserted else gradient.flatten(1)  # a copy is of one task
            self._received[inserted] = (rows != 0).any(1)

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
        """What a task has been given and can train, and whether a gradient came to it."""
        for name, block in model.named_modules():
            insert = getattr(block, "dtme", None)
            if not isinstance(insert, Insert):
                continue
            # A kind is reached if one of its parameters is: low-rank updates start with B = 0, where A's gradient is zero.
            kinds: dict[str, list[bool]] = defaultdict(list)
            for own, parameter in insert.named_parameters():
                holders = insert.tasks_of(own)
                if task in holders and parameter.requires_grad:
                    rows = self._received.get(f"{name}.dtme.{own}".lstrip("."), torch.zeros(len(holders)))
                    kinds[_kind_of(own)].append(rows is None or bool(rows[holders.index(task)]))
            skipping = _skips_samples(block)
            for kind, reached in kinds.items():
                if any(reached) or kind == "modulator" or not skipping:
                    yield (task, kind, insert.name), any(reached)


def _kind_of(own: str) -> str:
    kinds = {"tokens": "task tokens", "low_rank": "adaptation", "copies": "copy"}
    return kinds.get(own.split(".")[0], "modulator")


def _skips_samples(block: nn.Module) -> bool:
    """Whether stochastic depth may keep all samples of a small batch from what lies inside the block."""
    return any(
        _STOCHASTIC_DEPTH.search(type(inner).__name__) and getattr(inner, "drop_prob", getattr(inner, "p", 1.0)) != 0
        for inner in block.modules()
    )


def watch(model: nn.Module, routing: Routing, tasks: Iterable[str]) -> FirstBackward:
    """Watch the first backward pass of each of the tasks through a model."""
    first = FirstBackward(routing, tasks)
    if first.waiting:
        first.handle = model.register_forward_hook(partial(_after_forward, first))
    return first


def _after_forward(first: FirstBackward, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return
    if model.training and torch.is_grad_enabled():
        first.after_forward(model, output)


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
