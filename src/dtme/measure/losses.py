"""The losses of a batch, checked; which of them are tasks, and which is but the sum of others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from dtme._arguments import ArgumentTypeError
from dtme._wrappers import modules_by_name
from dtme.measure.capture import Capture
from dtme.trunk.branches import branches_beyond, leaving_modules

TaskLosses = Callable[[nn.Module, Any], Mapping[str, Tensor]]
"""Yours: `task_losses(model, batch)` gives each task's loss, a scalar; a task the batch says nothing about is left out."""

Branches = Mapping[str, "nn.Module | str"]
"""Task to the module, or its name, where it leaves the trunk."""

TOTAL = re.compile(
    r"(total|sum|all|overall|combined|joint|full|mtl|multi_?task)?_?(loss(es)?)?_?(total|sum|all)?", re.I
)
"""What a loss is called that is no task's but the sum of theirs; matched in full, and by no name that is empty."""

SAME_SUM = 0.02
"""Of a gradient, the part that no weighted sum of others gives: below it, the rest may be rounding to bfloat16."""

NUMBERS = 2**14
"""Numbers of a gradient by which sums are told."""


@dataclass(frozen=True)
class TaskChoice:
    """What is asked for by name: nothing, or the tasks that are meant and where they leave the trunk.

    Attributes:
        tasks: Those to analyse; `None` takes all that losses are given for.
        branches: Where each leaves the trunk; `None` looks for a `ModuleDict` whose keys are the tasks.
    """

    tasks: tuple[str, ...] | None = None
    branches: Branches | None = None

    @classmethod
    def of(cls, tasks: Sequence[str] | None, branches: Branches | None) -> TaskChoice:
        """What two arguments of `analyze` ask for.

        Raises:
            ValueError: Names that cannot be meant.
        """
        if isinstance(tasks, str):
            raise ArgumentTypeError(
                f"tasks={tasks!r} is a string: give a list of at least two, ['depth', 'semseg'] say."
            )
        if tasks is None:
            return cls(None, branches)
        wrong = [task for task in tasks if not isinstance(task, str)]
        if wrong:
            raise ArgumentTypeError(f"tasks={list(tasks)}: {wrong[0]!r} is no string. Name tasks as task_losses does.")
        if len(set(tasks)) < max(2, len(tasks)):
            raise ValueError(f"tasks={list(tasks)}: name at least two tasks, each once.")
        return cls(tuple(tasks), branches)

    def missing(self, trunk: nn.Module, met: Sequence[str]) -> list[str]:
        """Tasks that may come yet: those named, or else those with a branch beside the branches of the tasks met."""
        if self.tasks is not None:
            return [task for task in self.tasks if task not in met]
        named = branches_beyond(trunk, met) if self.branches is None else list(self.branches)
        return [task for task in named if task not in met]

    def wait_for(self, trunk: nn.Module, met: Sequence[str], patience: int) -> float:
        """Samples to read before no other task is waited for: those that are named must come, and what has a branch may.

        Args:
            trunk: The model.
            met: Tasks that losses were given for.
            patience: Samples to wait for what may come.
        """
        if not self.missing(trunk, met):
            return 0
        return patience if self.tasks is None else inf

    def settle(self, trunk: nn.Module, met: Sequence[str], cut: str) -> tuple[tuple[str, ...], list[str]]:
        """The tasks of an analysis and, in a sentence, the branches that are none.

        Args:
            trunk: The model.
            met: Tasks that losses were given for, in the order in which they came.
            cut: What may have ended the reading too early, in a sentence; empty if nothing.

        Raises:
            ValueError: Fewer than two tasks, one that was asked for without a loss, a branch that is missing or shared, or a
                loss that by its name is the sum of the others and has no branch where they have.
        """
        missing = self.missing(trunk, met)
        if self.tasks is not None and missing:
            raise ValueError(f"tasks={self.tasks}: no batch gave a loss for {missing[0]!r}, but for {list(met)}.{cut}")
        if len(met) < 2:
            raise ValueError(f"task_losses gave losses for {list(met)}: conflicts need at least two tasks.{cut}")
        tasks = tuple(met) if self.tasks is None else self.tasks
        for task in self.suspects(trunk, tasks):
            if _is_named_total(task) and task not in self._with_branch(trunk, tasks):
                raise ValueError(
                    f"task_losses gave {task!r}, which has no branch where the other tasks have. {_remedy(task)}"
                )
        if self.branches is not None:
            given = {task: own for task, own in self.branches.items() if task in tasks}
            if len(given) < len(tasks):
                raise ValueError(
                    f"branches names {tuple(self.branches)}, and losses came for {tasks}: give each task its module, or name "
                    "the tasks that are meant: tasks=[...]."
                )
            leaving_modules(trunk, tasks, given)
        what = "a branch" if self.branches is None else "branches="
        notes = [
            f"{', '.join(map(repr, missing))}: {what} in the model, but no loss in what was read, and so no task here.{cut}"
        ]
        return tasks, notes if missing else []

    def modules(self, trunk: nn.Module) -> dict[str, nn.Module]:
        """The branches that were given, by task."""
        named = modules_by_name(trunk)
        given = {} if self.branches is None else self.branches
        return {task: named[own] if isinstance(own, str) else own for task, own in given.items()}

    def suspects(self, trunk: nn.Module, tasks: Sequence[str]) -> list[str]:
        """Losses that may be sums of others: called so, or without a branch where all others have one."""
        if self.tasks is not None:
            return []
        branched = self._with_branch(trunk, tasks)
        alone = [task for task in tasks if task not in branched]
        return [task for task in tasks if _is_named_total(task) or alone == [task]]

    def _with_branch(self, trunk: nn.Module, tasks: Sequence[str]) -> set[str]:
        """The tasks that have a branch, where at most one has none."""
        if self.branches is not None:
            return set(self.branches) & set(tasks)
        for left_out in (None, *tasks):
            others = [task for task in tasks if task != left_out]
            held = any(
                isinstance(module, nn.ModuleDict) and set(others) <= set(module.keys()) for module in trunk.modules()
            )
            if held and len(others) > 1:
                return set(others)
        return set(tasks)


def _is_named_total(task: str) -> bool:
    return bool(task) and TOTAL.fullmatch(task) is not None


def _remedy(task: str) -> str:
    return (
        f"A sum of the others is no task: leave it out of what task_losses returns, or name the tasks, tasks=[...]; {task!r} "
        "among them is analysed all the same."
    )


def check_losses(
    model: nn.Module,
    task_losses: TaskLosses,
    batch: Any,
    number: int,
    caught: Capture,
    *,
    wanted: tuple[str, ...] | None = None,
    expected: tuple[str, ...] | None = None,
) -> dict[str, Tensor]:
    """The losses of a batch, checked.

    Args:
        model: Given to `task_losses`.
        task_losses: The user's.
        batch: Given to `task_losses`.
        number: Of the batch.
        caught: Catches what enters the blocks meanwhile.
        wanted: The tasks that were asked for; others are left out unseen.
        expected: The tasks that are known; another one is an error.

    Raises:
        ArgumentTypeError: What came is no dictionary, or a task's name no string.
        ValueError: A loss is no scalar, not finite, or of a task that is not known.
    """
    with caught.reading(batch):
        found = task_losses(model, batch)
    if not isinstance(found, Mapping):
        raise ArgumentTypeError(
            f"task_losses returned {_described(found)}. Return a dictionary, {{task: its loss, a scalar}}."
        )
    losses = {task: loss for task, loss in found.items() if wanted is None or task in wanted}
    for task, loss in losses.items():
        if not isinstance(task, str):
            raise ArgumentTypeError(
                f"task_losses: the name of a task is {task!r} ({type(task).__name__}). Tasks are named by strings: {str(task)!r}."
            )
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError(f"task_losses: the loss of task {task!r} is no scalar tensor but {_shape(loss, caught)}.")
        if not bool(loss.isfinite()):
            raise ValueError(
                f"the loss of task {task!r} is {loss.item()} in batch {number}; {_first_not_finite(caught)}. "
                "Analyse a model whose losses are finite."
            )
        if expected is not None and task not in expected:
            raise ValueError(
                f"task_losses gave task {task!r} in batch {number} of the second round, unknown in the first: {expected}. "
                "Name the tasks, tasks=[...], and the first round waits for each of them."
            )
    return losses


def _described(found: Any) -> str:
    if isinstance(found, Tensor):
        return "one tensor"
    if found is None:
        return "None (is its return missing?)"
    if isinstance(found, tuple | list):
        return f"a {type(found).__name__} of {len(found)}, which does not say whose each loss is"
    return f"a {type(found).__name__}"


def _shape(loss: Any, caught: Capture) -> str:
    if not isinstance(loss, Tensor):
        return f"{type(loss).__name__}. Return tensors, as the losses of torch are"
    shape = tuple(loss.shape)
    if caught.entries and loss.ndim and len(loss) == caught.samples():
        return f"{shape}, a loss per sample. Reduce it, .mean() say"
    return f"{shape}. Reduce it, .mean() say"


def _first_not_finite(caught: Capture) -> str:
    for name, entry in caught.entries.items():
        if not entry.finite():
            return f"the first tokens that are not finite enter block {name!r}"
    last = next(reversed(caught.entries), "none")
    return f"all tokens that enter the blocks are finite (the last is {last!r}), so the fault lies behind them"


def refuse_sums(
    gradients: Iterable[tuple[str, Mapping[str, Tensor]]], suspects: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Hand on the gradients of a batch, block by block, unless that of a suspect is a weighted sum of the others'.

    Token gradients tell it better than values do: what else is in a sum, decay of weights say, has none.

    Raises:
        ValueError: It is, with weights that are not negative; the message names the task and them.
    """
    for block, of_tasks in gradients:
        for task in suspects:
            weights = weights_of_sum(task, of_tasks)
            if weights:
                told = " + ".join(f"{weight:.3g} × {other!r}" for other, weight in weights.items())
                raise ValueError(f"the loss of {task!r} is the sum {told} of others. {_remedy(task)}")
        yield block, of_tasks


def weights_of_sum(task: str, gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """The weights with which the gradients of other tasks add up to that of a task; empty where they do not.

    Example:
        >>> one, two = torch.eye(8).view(2, 4, 8).split(1)
        >>> weights_of_sum("total", {"a": one, "b": two, "total": one + 0.5 * two})
        {'a': 1.0, 'b': 0.5}
        >>> weights_of_sum("a", {"a": one, "b": two, "total": one + 0.5 * two})
        {}
    """
    others = [other for other in gradients if other != task]
    if task not in gradients or not others:
        return {}
    stride = max(1, gradients[task].numel() // NUMBERS)
    flat = [gradients[name].flatten()[::stride].to("cpu", torch.float64) for name in (*others, task)]
    sizes = torch.stack([own.norm() for own in flat])
    if len(flat[0]) < 8 * len(flat) or not bool(sizes.all()):
        return {}
    *known, whole = (own / size for own, size in zip(flat, sizes, strict=True))
    matrix = torch.stack(known, 1)
    found = torch.linalg.lstsq(matrix, whole.unsqueeze(1)).solution
    rest = float((matrix @ found - whole.unsqueeze(1)).norm())
    weights = (found.squeeze(1) * sizes[-1] / sizes[:-1]).tolist()
    if rest > SAME_SUM or bool((found < -SAME_SUM).any()):
        return {}
    return {other: round(weight, 6) for other, weight in zip(others, weights, strict=True) if weight > SAME_SUM}
