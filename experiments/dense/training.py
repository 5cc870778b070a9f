"""How a batch of a dense suite gives losses, and how good a model's predictions are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dtme.attach.apply import added_parameters, is_applied
from experiments.dense.multi_task_model import MultiTaskModel
from experiments.dense.recipe import Recipe
from experiments.dense.suite import Batch, Images, Task
from experiments.runner.processes import place, share_buffers
from experiments.runner.seeds import hash_of
from experiments.training.optimizer import add_group, make_optimizer
from experiments.training.run import Run, schedule


def task_losses(model: nn.Module, batch: Batch, tasks: Sequence[Task]) -> dict[str, Tensor]:
    """Each task's loss on a batch of a split, without those that nothing is known of in it.

    Where a model predicts a task more than once, as decoders with supervised first guesses do, it is the sum of the losses.
    """
    outputs = model(batch["image"])
    return {
        task.name: torch.stack([task.loss(one, batch[task.name]) for one in guesses(outputs[task.name])]).sum()
        for task in tasks
        if task.name in batch
    }


def guesses(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a model predicts for a task: the prediction, and whatever else of it is supervised behind it."""
    return output if isinstance(output, tuple) else (output,)


def weigh(losses: Mapping[str, Tensor], tasks: Sequence[Task]) -> dict[str, Tensor]:
    """The tasks' losses, each times the weight of its task: training minimises their sum."""
    return {task.name: task.weight * losses[task.name] for task in tasks if task.name in losses}


@dataclass(frozen=True)
class DenseWorkload:
    """A split whose images are shared by all tasks; see `experiments.training.run.Workload`.

    Attributes:
        tasks: Whose losses are minimised.
        split: What is trained on.
        recipe: How.
        seed: Of the data order; runs that share it see the same batches.
        steps: Length of the schedule.
    """

    tasks: tuple[Task, ...]
    split: Images
    recipe: Recipe
    seed: int
    steps: int
    clip: ClassVar[None] = None

    @property
    def accumulate(self) -> int:
        """Parts of a batch that are gone through one after another."""
        return self.recipe.parts_of_a_batch

    @property
    def peak(self) -> float:
        """Peak learning rate of the trunk."""
        return self.recipe.learning_rate * self.recipe.row_rate

    def share(self, step: int) -> float:
        """A rise, then the polynomial fall of power 0.9."""
        return schedule(step, self.steps, self.recipe.warmup, 0.9)

    def noise(self, step: int) -> int:
        """A seed of its own for each step and process."""
        rank = place()[0]
        return hash_of(self.seed, "dropout", step, *([rank] if rank else []))

    def batches(self, start: int, until: int) -> Iterator[Batch]:
        """Images and targets, epoch after epoch."""
        yield from self.split.steps(self.recipe.batch, self.seed, until, start)

    def parts(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """The batch in as many parts as the recipe says, each with its share of the images."""
        images = len(batch["image"])
        for rows in torch.arange(images).chunk(self.accumulate):
            own = slice(int(rows[0]), int(rows[-1]) + 1)
            yield {name: values[own] for name, values in batch.items()}, len(rows) / images

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Of every task that something is known of in the batch."""
        return task_losses(model, batch, self.tasks)

    def terms(self, losses: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The losses times the tasks' weights."""
        return weigh(losses, self.tasks)

    def infer(self, model: nn.Module, batch: Batch) -> object:
        """The predictions of all tasks."""
        return model(batch["image"])


def begin(
    model: MultiTaskModel,
    tasks: tuple[Task, ...],
    split: Images,
    recipe: Recipe,
    *,
    seed: int,
    steps: int | None = None,
) -> Run:
    """A run at its first step; what a plan has added to the model is trained, too.

    Args:
        model: What is trained; it is put where the images are.
        tasks: Whose losses are minimised.
        split: What is trained on.
        recipe: How.
        seed: Of the data order.
        steps: Length of the schedule, if not the recipe's.
    """
    steps = recipe.steps if steps is None else steps
    model = model.to(split.device)
    optimizer = make_optimizer(model, recipe, lambda p: p.ndim > 1 and p.shape[0] > 1, recipe.optimizer_class)
    run = Run(model, DenseWorkload(tasks, split, recipe, seed, steps), optimizer)
    if is_applied(model):
        add_inserts(run, recipe)
    return run


def add_inserts(run: Run, recipe: Recipe, since: int = 0) -> None:
    """Give the parameters a plan added groups of their own: no decay by default, which would pull scales to 0 instead of to 1.

    Args:
        run: A plan has been applied to its model.
        recipe: Their learning rates, decay and warm-up.
        since: The step of insertion, where their warm-up begins.
    """
    new = list(added_parameters(run.model))
    for of_weights, rate in ((False, recipe.insert_rate), (True, recipe.low_rank_rate)):
        parameters = [own for name, own in new if (".low_rank." in name or ".copies." in name) == of_weights]
        add_group(run.optimizer, parameters, rate, recipe.insert_decay, since=since, warmup=recipe.insert_warmup)


def freeze_trunk(run: Run) -> None:
    """Train the trunk no further (Tab. 12); what a plan adds to it later is trained."""
    trunk: nn.Module = run.model.trunk  # pyright: ignore[reportAssignmentType]
    frozen = {id(parameter) for parameter in trunk.requires_grad_(False).parameters()}
    groups = run.optimizer.param_groups
    groups[:] = [group for group in groups if not frozen.issuperset(map(id, group["params"]))]


def add_own(run: Run, parameters: Sequence[nn.Parameter], rate: float, decay: float) -> None:
    """Give parameters of a method's own groups like those of the trunk's: decay on matrices only."""
    add_group(run.optimizer, (p for p in parameters if p.ndim > 1), rate, decay)
    add_group(run.optimizer, (p for p in parameters if p.ndim <= 1), rate)


@contextmanager
def compiled(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """While it lasts, the model runs compiled if the recipe says so; names of weights stay as they are."""
    if recipe.compiles:
        model.compile()
    try:
        yield
    finally:
        model._compiled_call_impl = None


@torch.no_grad()
def settle_statistics(model: nn.Module, split: Images, *, batch: int = 64) -> None:
    """Take the means and variances of every batch norm anew, over a whole split.

    What training leaves is an average over its last few batches, whatever images happened to be in them; the noise of that is
    larger than what methods differ by, and rows of different lengths do not share it.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    for own in split.in_order(batch):
        model(own["image"])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What the model gives for images as a split's batches hold them."""
    model.eval()
    return {task: guesses(output)[0] for task, output in model(images).items()}


def evaluate(model: nn.Module, split: Images, tasks: Sequence[Task], *, batch: int = 50) -> dict[str, float]:
    """Each task's metric over a whole split, over the images that something is known of."""
    return measure(model, split, tasks, batch=batch)["metrics"]


@torch.no_grad()
def measure(model: nn.Module, split: Images, tasks: Sequence[Task], *, batch: int = 50) -> dict[str, dict[str, float]]:
    """Each task's metric over a whole split, and its loss, the mean over batches by their images."""
    share_buffers(model)
    model.eval()
    metrics = {task.name: task.metric().to(split.device) for task in tasks}
    summed, seen = dict.fromkeys(metrics, 0.0), dict.fromkeys(metrics, 0)
    for own in split.in_order(batch):
        outputs = model(own["image"])
        for task in tasks:
            last = guesses(outputs[task.name])[0]
            target = own.get(task.measured_on or task.name)
            if target is not None:
                metrics[task.name].update(last, target)
            if task.name in own:
                summed[task.name] += float(task.loss(last, own[task.name])) * len(own["image"])
                seen[task.name] += len(own["image"])
    return {
        "metrics": {name: float(metric.compute()) for name, metric in metrics.items()},
        "losses": {name: summed[name] / seen[name] for name in metrics if seen[name]},
    }
