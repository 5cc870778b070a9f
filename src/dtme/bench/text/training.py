"""The training loop: a run with its whole state in one place, so that rows branch off and runs go on where they stopped."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtme._shapes import Float
from dtme.apply import added_parameters, apply, is_applied
from dtme.bench.hashing import hash_of
from dtme.bench.text.batches import Drawing, batches
from dtme.bench.text.divergence import check_finite
from dtme.bench.text.recipe import TextRecipe
from dtme.bench.text.suite import Batch, TextSuite
from dtme.plan import Plan
from dtme.routing import tasks as routed


@contextmanager
def rows_of_tasks(model: nn.Module, suite: TextSuite, batch: Batch) -> Iterator[None]:
    """While it lasts, the model takes each row of the batch for its own task; a plain model makes no difference."""
    present = batch.tasks.unique().tolist()
    own: Any = getattr(model, "per_sample", None)
    if is_applied(model):
        names = [task.name for task in suite.tasks]
        one = len(present) == 1
        each = [names[place] for place in batch.tasks.tolist()]  # by name: a plan may have the tasks in another order
        with routed(model, names[present[0]]) if one else routed(model, per_sample=each):
            yield
    else:
        with nullcontext() if own is None else own(batch.tasks):
            yield


def task_losses(model: nn.Module, suite: TextSuite, batch: Batch, precision: str = "float32") -> dict[str, Tensor]:
    """Each task's mean loss over its rows of a batch: cross-entropy of classes, squared error of numbers on unit scale.

    A task without rows is left out. This is what `dtme.analyze` is given.

    Raises:
        ValueError: The model has no head for a task that has rows.
    """
    half = precision == "bfloat16"
    with (
        rows_of_tasks(model, suite, batch),
        torch.autocast(batch.tasks.device.type, dtype=torch.bfloat16, enabled=half),
    ):
        outputs = model(**batch.inputs)
    losses = {}
    for place, task in enumerate(suite.tasks):
        rows = batch.tasks == place
        if not bool(rows.any()):
            continue
        predicted, target = prediction_of(task.name, outputs)[rows], batch.targets[rows]
        predicted = predicted.float() if half else predicted
        if task.labels is None:
            losses[task.name] = F.mse_loss(predicted.squeeze(1), target)
        else:
            losses[task.name] = F.cross_entropy(predicted, target.long())
    return losses


def prediction_of(task: str, outputs: Mapping[str, Tensor]) -> Float[Tensor, "rows outputs"]:
    """What a model predicts for one task.

    Raises:
        ValueError: It has no head for it.
    """
    if task not in outputs:
        raise ValueError(
            f"the model has no head for task {task!r}, but for {tuple(outputs)}: build it for all tasks of the suite, "
            "build(trunk, suite.tasks, seed), or load these tasks alone."
        )
    return outputs[task]


def objective(losses: Mapping[str, Tensor], suite: TextSuite, batch: Batch) -> Float[Tensor, ""]:
    """The mean loss over the rows of a batch, whatever their tasks: what training minimises."""
    rows = batch.tasks.bincount(minlength=len(suite.tasks)).tolist()
    terms = [
        count / len(batch) * losses[task.name]
        for task, count in zip(suite.tasks, rows, strict=True)
        if task.name in losses
    ]
    return torch.stack(terms).sum()


def optimiser(model: nn.Module, recipe: TextRecipe) -> torch.optim.AdamW:
    """AdamW with groups for trunk and heads, decay on matrices only; what a method adds comes with `add_group`."""
    groups = []
    for heads, rate in ((False, 1.0), (True, recipe.head_rate)):
        own = [parameter for name, parameter in model.named_parameters() if name.startswith("heads.") == heads]
        for decays in (True, False):
            chosen = [parameter for parameter in own if (parameter.ndim > 1) == decays]
            groups.append({"params": chosen, "rate": rate, "weight_decay": recipe.weight_decay if decays else 0.0})
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


def add_group(made: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], rate: float, decay: float = 0.0) -> None:
    """Give new parameters a group of their own, by default without decay, which would pull scales to 0 instead of to 1."""
    own = list(parameters)
    if own:
        made.add_param_group({"params": own, "rate": rate, "weight_decay": decay})


def schedule(step: int, steps: int, warmup: int) -> float:
    """Learning rate as a share of its peak: a linear rise, then a linear fall to zero.

    Example:
        >>> schedule(0, 100, 10), schedule(9, 100, 10), schedule(55, 100, 10)
        (0.1, 1.0, 0.5)
    """
    if step < warmup:
        return (step + 1) / warmup
    return 1 - (step - warmup) / max(1, steps - warmup)


@dataclass
class TextRun:
    """A training run in its whole state.

    Attributes:
        model: In training.
        suite: What it is trained on.
        recipe: How.
        drawing: Which batches it sees; its `steps` are the length of the schedule.
        made: The optimiser.
        step: Steps done.
        seconds: Spent in them.
        curves: By task, pairs of step and training loss, a mean over the steps since the pair before.
        pending: By task, the losses since its last pair.
    """

    model: nn.Module
    suite: TextSuite
    recipe: TextRecipe
    drawing: Drawing
    made: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    pending: dict[str, list[float]] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Everything that another run needs to go on from here, in plain types and tensors."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.made.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "curves": self.curves,
            "pending": self.pending,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where another run of the same shape was."""
        self.model.load_state_dict(state["model"])
        self.made.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.curves = {task: [list(pair) for pair in pairs] for task, pairs in state["curves"].items()}
        self.pending = {task: list(losses) for task, losses in state["pending"].items()}


def begin(
    model: nn.Module, suite: TextSuite, recipe: TextRecipe, *, seed: int = 0, steps: int | None = None
) -> TextRun:
    """A run at its first step."""
    return TextRun(model, suite, recipe, recipe.drawing(seed, steps), optimiser(model, recipe))


def insert(run: TextRun, plan: Plan, *, seed: int = 0) -> None:
    """Apply a plan to the model of a run, and train what it adds from here on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        apply(run.model, plan)
    of: dict[str, list[nn.Parameter]] = {"inserts": [], "low-rank": [], "matrices": [], "vectors": []}
    for name, parameter in added_parameters(run.model):
        if ".copies." in name:
            of["matrices" if parameter.ndim > 1 else "vectors"].append(parameter)
        else:
            of["low-rank" if ".low_rank." in name else "inserts"].append(parameter)
    recipe = run.recipe
    add_group(run.made, of["inserts"], recipe.insert_rate)
    add_group(run.made, of["low-rank"], recipe.low_rank_rate)
    add_group(run.made, of["matrices"], recipe.copies_rate, recipe.weight_decay)
    add_group(run.made, of["vectors"], recipe.copies_rate)


def train(
    run: TextRun,
    until: int | None = None,
    *,
    advance: Callable[[int, int], None] | None = None,
    every: int = 25,
) -> None:
    """Train up to step `until`, by default to the end.

    Args:
        run: Changed in place.
        until: Stop before this step.
        advance: Told the steps done, and all of them, now and then.
        every: Steps between two points of the curves.

    Raises:
        DivergedError: A loss is not finite; names task and step, and the weights are those before it.
    """
    until = run.drawing.steps if until is None else until
    device = next(run.model.parameters()).device
    began = perf_counter()
    run.model.train()
    for batch in batches(run.suite, run.drawing, start=run.step, until=until):
        for task, loss in step(run, batch.to(device)).items():
            run.pending.setdefault(task, []).append(float(loss))
        if run.step % every == 0 or run.step == run.drawing.steps:
            for task, losses in run.pending.items():
                run.curves.setdefault(task, []).append([run.step, statistics.fmean(losses)])
            run.pending = {}
            if advance is not None:
                advance(run.step, run.drawing.steps)
    run.seconds += perf_counter() - began


def step(run: TextRun, batch: Batch) -> dict[str, Tensor]:
    """One step: forward, backward and update, at the learning rate of the schedule.

    What is dropped depends on seed and step alone, so that rows pair and a run that was interrupted ends the same.

    Returns:
        The tasks' losses before the step.
    """
    for group in run.made.param_groups:
        share = schedule(run.step, run.drawing.steps, round(run.recipe.warmup * run.drawing.steps))
        group["lr"] = run.recipe.learning_rate * run.recipe.row_rate * group["rate"] * share
    with torch.random.fork_rng(devices=[batch.tasks.device] if batch.tasks.is_cuda else []):
        torch.manual_seed(hash_of(run.drawing.seed, "dropout", run.drawing.rank, run.step))
        losses = task_losses(run.model, run.suite, batch, run.recipe.precision)
    check_finite(losses, f"at step {run.step + 1}")  # a look before the update finds the weights still sound
    objective(losses, run.suite, batch).backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.clip)
    run.made.step()
    run.made.zero_grad(set_to_none=True)
    run.step += 1
    return {task: loss.detach() for task, loss in losses.items()}
