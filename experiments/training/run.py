"""A training run in its whole state, and its loop: generic in how a batch gives losses, so that every suite trains by it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from experiments.baselines import Balancing
from experiments.runner.processes import average_gradients
from experiments.training.divergence import check_finite


class Workload(Protocol):
    """What a run trains on: its batches, how they give losses, and the learning rate over its steps."""

    @property
    def steps(self) -> int:
        """Length of the schedule."""
        ...

    @property
    def peak(self) -> float:
        """Peak learning rate, of groups whose `rate` is 1."""
        ...

    @property
    def clip(self) -> float | None:
        """Norm that the gradient is cut to; `None` leaves it."""
        ...

    def share(self, step: int) -> float:
        """Learning rate at a step as a share of its peak."""
        ...

    @property
    def accumulate(self) -> int:
        """Parts of a batch that are gone through one after another, so that less is held at once."""
        ...

    def parts(self, batch: Any) -> Iterable[tuple[Any, float]]:
        """The parts of a batch, each with its share of it."""
        ...

    def noise(self, step: int) -> int:
        """Seed of what is dropped at a step, so that rows pair and a run that was interrupted ends the same."""
        ...

    def batches(self, start: int, until: int) -> Iterator[Any]:
        """The batches of steps `start` to `until`: a function of the workload and the step alone."""
        ...

    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Each task's loss on a batch, without weights; a task that has none is left out."""
        ...

    def terms(self, losses: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
        """The losses as they are weighted: training minimises their sum."""
        ...

    def infer(self, model: nn.Module, batch: Any) -> object:
        """A pass as it is priced, all tasks of the batch."""
        ...


@dataclass
class Run:
    """A training run in its whole state.

    Attributes:
        model: In training.
        workload: What it is trained on.
        optimizer: Each of its groups has a `rate`, the multiple of the peak learning rate; and, where it came later and rises
            from there, `since` and `warmup`, in steps.
        balancing: How the losses become gradients; `None` minimises their weighted sum.
        step: Steps done.
        seconds: Spent in them.
        curves: By task, pairs of step and training loss, a mean over the steps since the pair before.
        pending: By task, the losses since its last pair.
        looks: What was measured on the way, each with its step.
    """

    model: nn.Module
    workload: Any
    optimizer: torch.optim.Optimizer
    balancing: Balancing | None = None
    step: int = 0
    seconds: float = 0.0
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    pending: dict[str, list[float]] = field(default_factory=dict)
    looks: list[dict[str, Any]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """Everything that another run needs to branch off or to go on here, in plain types and tensors."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimizer.state_dict(),
            "balancing": {} if self.balancing is None else self.balancing.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "curves": self.curves,
            "pending": self.pending,
            "looks": self.looks,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where another run of the same shape was."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimiser"])
        if self.balancing is not None:
            self.balancing.load_state_dict(state["balancing"])
        self._go_on_from(state["step"], state["seconds"], state["curves"], state.get("pending", {}))
        self.looks = list(state.get("looks", []))

    def take_over(self, other: Run) -> None:
        """Go on from where another run was, with all that it has; what only this one has stays as it is."""
        old = dict(other.model.named_parameters())
        self.model.load_state_dict(other.model.state_dict(), strict=False)
        for name, parameter in self.model.named_parameters():
            if name in old and old[name] in other.optimizer.state:
                kept = other.optimizer.state[old[name]]
                self.optimizer.state[parameter] = {key: value.clone() for key, value in kept.items()}
        self._go_on_from(other.step, other.seconds, other.curves, other.pending)

    def _go_on_from(
        self,
        step: int,
        seconds: float,
        curves: Mapping[str, list[list[float]]],
        pending: Mapping[str, list[float]],
    ) -> None:
        self.step, self.seconds = step, seconds
        self.curves = {task: [list(pair) for pair in pairs] for task, pairs in curves.items()}
        self.pending = {task: list(losses) for task, losses in pending.items()}


def train(
    run: Run, until: int | None = None, *, advance: Callable[[int, int], None] | None = None, every: int = 25
) -> None:
    """Train up to step `until`, by default to the end.

    Args:
        run: Changed in place.
        until: Stop before this step.
        advance: Told the steps done, and all of them, at each point of the curves.
        every: Steps between two points of the curves.

    Raises:
        DivergedError: A loss is not finite; names task and step, and the weights are those before it.
    """
    steps = run.workload.steps
    until = steps if until is None else until
    run.model.train()
    began = perf_counter()
    for batch in run.workload.batches(run.step, until):
        for task, loss in step(run, batch).items():
            run.pending.setdefault(task, []).append(float(loss))
        if run.step % every == 0 or run.step == steps:
            for task, losses in run.pending.items():
                run.curves.setdefault(task, []).append([run.step, statistics.fmean(losses)])
            run.pending = {}
            if advance is not None:
                advance(run.step, steps)
    run.seconds += perf_counter() - began


def step(run: Run, batch: Any) -> dict[str, Tensor]:
    """One step: forward, backward and update, at the learning rates of the schedule.

    Returns:
        The tasks' losses before the step, without weights.

    Raises:
        DivergedError: A loss is not finite.
    """
    workload = run.workload
    set_rates(run)
    device = next(run.model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(workload.noise(run.step))
        losses = _in_parts(run, batch) if workload.accumulate > 1 else _at_once(run, batch)
    average_gradients(run.model)
    if workload.clip is not None:
        nn.utils.clip_grad_norm_(run.model.parameters(), workload.clip)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.balancing is not None:
        run.balancing.after_step(lambda: workload.terms(workload.losses(run.model, batch), batch))
    run.step += 1
    return {task: loss.detach() for task, loss in losses.items()}


def _at_once(run: Run, batch: Any) -> dict[str, Tensor]:
    """The losses of a batch; their gradients are in the parameters."""
    losses = run.workload.losses(run.model, batch)
    check_finite(losses, f"at step {run.step + 1}")  # a look before the update finds the weights still sound
    terms = run.workload.terms(losses, batch)
    if run.balancing is not None:
        run.balancing(run.model, terms)
    elif terms:  # nothing may be known of the tasks in this batch
        torch.stack(list(terms.values())).sum().backward()
    return losses


def _in_parts(run: Run, batch: Any) -> dict[str, Tensor]:
    """The same part by part: means of the parts, by their shares of the batch, take the place of means over the batch."""
    if run.balancing is not None:
        raise ValueError(
            f"accumulate={run.workload.accumulate}: gradients are balanced on whole batches. Use accumulate=1, or the methods "
            "that minimise a weighted sum."
        )
    summed: dict[str, Tensor] = {}
    for part, share in run.workload.parts(batch):
        losses = run.workload.losses(run.model, part)
        check_finite(losses, f"at step {run.step + 1}")
        terms = run.workload.terms(losses, part)
        if terms:
            (share * torch.stack(list(terms.values())).sum()).backward()
        for task, loss in losses.items():
            summed[task] = summed.get(task, 0.0) + share * loss.detach()
    return summed


def set_rates(run: Run) -> None:
    """Give every group of the optimizer its learning rate at the run's step."""
    share = run.workload.share(run.step)
    for group in run.optimizer.param_groups:
        risen = (run.step - group.get("since", 0) + 1) / max(1, group.get("warmup", 0))
        group["lr"] = run.workload.peak * group["rate"] * min(1.0, risen) * share


def schedule(step: int, steps: int, warmup: int, power: float) -> float:
    """Learning rate as a share of its peak: a linear rise, then a polynomial fall to zero, in a line for power 1.

    Example:
        >>> schedule(0, 100, 10, 1.0), schedule(9, 100, 10, 1.0), schedule(55, 100, 10, 1.0)
        (0.1, 1.0, 0.5)
        >>> round(schedule(55, 100, 10, 0.9), 3)
        0.536
    """
    if step < warmup:
        return (step + 1) / warmup
    return math.pow(1 - (step - warmup) / max(1, steps - warmup), power)
