"""How a batch of text tasks gives losses: each row has a task of its own, and counts for that task's head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtme._shapes import Float
from dtme.attach.apply import added_parameters, apply, is_applied
from dtme.plan.plan import Plan
from dtme.streams.routing import tasks as routed
from experiments.runner.seeds import hash_of
from experiments.text.data.batches import Drawing, batches
from experiments.text.data.suite import Batch, TextSuite
from experiments.text.recipe import TextRecipe
from experiments.training.optimizer import add_group, make_optimizer
from experiments.training.run import Run, schedule


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


def weigh(losses: Mapping[str, Tensor], suite: TextSuite, batch: Batch) -> dict[str, Tensor]:
    """The tasks' losses, each times the share of its task in the rows of the batch."""
    rows = batch.tasks.bincount(minlength=len(suite.tasks)).tolist()
    return {
        task.name: count / len(batch) * losses[task.name]
        for task, count in zip(suite.tasks, rows, strict=True)
        if task.name in losses
    }


def objective(losses: Mapping[str, Tensor], suite: TextSuite, batch: Batch) -> Float[Tensor, ""]:
    """The mean loss over the rows of a batch, whatever their tasks: what training minimises."""
    return torch.stack(list(weigh(losses, suite, batch).values())).sum()


@dataclass(frozen=True)
class TextWorkload:
    """Sentences that each are of one task; see `experiments.training.run.Workload`.

    Attributes:
        suite: What is trained on.
        recipe: How.
        drawing: Which batches are seen; its `steps` are the length of the schedule.
        device: Where the model is.
    """

    suite: TextSuite
    recipe: TextRecipe
    drawing: Drawing
    device: torch.device
    accumulate: ClassVar[int] = 1

    @property
    def steps(self) -> int:
        """Length of the schedule."""
        return self.drawing.steps

    @property
    def peak(self) -> float:
        """Peak learning rate of the trunk."""
        return self.recipe.learning_rate * self.recipe.row_rate

    @property
    def clip(self) -> float:
        """Norm that the gradient is cut to."""
        return self.recipe.clip

    def share(self, step: int) -> float:
        """A rise, then a fall in a line."""
        return schedule(step, self.steps, round(self.recipe.warmup * self.steps), 1.0)

    def noise(self, step: int) -> int:
        """A seed of its own for each step and process."""
        return hash_of(self.drawing.seed, "dropout", self.drawing.rank, step)

    def batches(self, start: int, until: int) -> Iterator[Batch]:
        """As they are drawn."""
        for batch in batches(self.suite, self.drawing, start=start, until=until):
            yield batch.to(self.device)

    def parts(self, batch: Batch) -> list[tuple[Batch, float]]:
        """The whole."""
        return [(batch, 1.0)]

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Of the tasks that have rows in the batch."""
        return task_losses(model, self.suite, batch, self.recipe.precision)

    def terms(self, losses: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The losses times the tasks' shares of the rows."""
        return weigh(losses, self.suite, batch)

    def infer(self, model: nn.Module, batch: Batch) -> object:
        """Each row through its own task."""
        return self.losses(model, batch)


def begin(model: nn.Module, suite: TextSuite, recipe: TextRecipe, *, seed: int = 0, steps: int | None = None) -> Run:
    """A run at its first step.

    Args:
        model: What is trained; it stays on its device.
        suite: What it is trained on.
        recipe: How.
        seed: Of data order and dropout.
        steps: Length of the schedule, if not the recipe's.
    """
    workload = TextWorkload(suite, recipe, recipe.drawing(seed, steps), next(model.parameters()).device)
    return Run(model, workload, make_optimizer(model, recipe, lambda parameter: parameter.ndim > 1))


def insert(run: Run, plan: Plan, *, seed: int = 0) -> None:
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
    recipe: TextRecipe = run.workload.recipe
    add_group(run.optimizer, of["inserts"], recipe.insert_rate)
    add_group(run.optimizer, of["low-rank"], recipe.low_rank_rate)
    add_group(run.optimizer, of["matrices"], recipe.copies_rate, recipe.weight_decay)
    add_group(run.optimizer, of["vectors"], recipe.copies_rate)
