"""The training loop: plain, with its whole state in one place, so that rows can branch off and runs can go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from dtme.apply import added_parameters, is_applied
from dtme.baselines import Balancing
from dtme.bench.model import MultiTaskViT, hash_of
from dtme.bench.recipe import Recipe
from dtme.bench.suite import Split, Task

Curves = dict[str, list[list[float]]]
"""Per task, pairs of step and training loss, each a mean over the steps since the pair before."""


def task_losses(model: nn.Module, batch: dict[str, Tensor], tasks: Sequence[Task]) -> dict[str, Tensor]:
    """Each task's loss on a batch of a split."""
    outputs = model(batch["image"])
    return {task.name: task.loss(outputs[task.name], batch[task.name]) for task in tasks}


def weighted(losses: Mapping[str, Tensor], tasks: Sequence[Task]) -> dict[str, Tensor]:
    """The tasks' losses, each times the weight of its task: training minimises their sum."""
    return {task.name: task.weight * losses[task.name] for task in tasks}


def data_order(samples: int, batch: int, steps: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """The rows of each step from `start` on: epochs of shuffled samples, a function of the seed and the step alone.

    Example:
        >>> whole = [rows.tolist() for rows in data_order(10, 3, 7, seed=1)]
        >>> whole[4:] == [rows.tolist() for rows in data_order(10, 3, 7, seed=1, start=4)]
        True
    """
    per_epoch = samples // batch
    if not per_epoch:
        raise ValueError(f"batch={batch}: the split holds only {samples} samples. Use a smaller batch.")
    epoch, order = -1, torch.empty(0, dtype=torch.long)
    for step in range(start, steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = torch.randperm(samples, generator=torch.Generator().manual_seed(hash_of(seed, "epoch", epoch)))
        place = step % per_epoch * batch
        yield order[place : place + batch]


def optimiser(model: MultiTaskViT, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with groups for trunk and heads, decay on matrices only; what a plan adds comes with `add_inserts`."""
    groups = []
    inserted = {id(parameter) for _, parameter in added_parameters(model)} if is_applied(model) else set()
    for part, rate in ((model.trunk, 1.0), (model.heads, recipe.head_rate)):
        own = [parameter for parameter in part.parameters() if id(parameter) not in inserted]
        for decays in (True, False):
            chosen = [p for p in own if (p.ndim > 1 and p.shape[0] > 1) == decays]
            decay = recipe.weight_decay if decays else 0.0
            groups.append({"params": chosen, "rate": rate, "weight_decay": decay})
    made = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    if inserted:
        add_inserts(made, model, recipe)
    return made


def add_inserts(made: torch.optim.Optimizer, model: nn.Module, recipe: Recipe, since: int = 0) -> None:
    """Give the parameters a plan added groups of their own: no decay by default, which would pull scales to 0 instead of to 1.

    Args:
        made: Gets the groups.
        model: A plan has been applied to it.
        recipe: Their learning rates, decay and warm-up.
        since: The step of insertion, where their warm-up begins.
    """
    new = list(added_parameters(model))
    for of_weights, rate in ((False, recipe.insert_rate), (True, recipe.low_rank_rate)):
        parameters = [own for name, own in new if (".low_rank." in name or ".copies." in name) == of_weights]
        if parameters:
            group = {"params": parameters, "rate": rate, "weight_decay": recipe.insert_decay}
            made.add_param_group({**group, "since": since, "warmup": recipe.insert_warmup})


def freeze_trunk(made: torch.optim.Optimizer, model: MultiTaskViT) -> None:
    """Train the trunk no further (Tab. 12); what a plan adds to it later is trained."""
    frozen = {id(parameter) for parameter in model.trunk.requires_grad_(False).parameters()}
    made.param_groups[:] = [group for group in made.param_groups if not frozen.issuperset(map(id, group["params"]))]


def add_own(made: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], rate: float, decay: float) -> None:
    """Give parameters of a method's own groups like those of the trunk's: decay on matrices only."""
    own = list(parameters)
    for decays in (True, False):
        chosen = [p for p in own if (p.ndim > 1) == decays]
        if chosen:
            made.add_param_group({"params": chosen, "rate": rate, "weight_decay": decay if decays else 0.0})


def schedule(step: int, steps: int, warmup: int) -> float:
    """Learning rate as a share of its peak: a linear rise, then the polynomial fall of power 0.9.

    Example:
        >>> schedule(0, 100, 10), schedule(9, 100, 10), round(schedule(55, 100, 10), 3)
        (0.1, 1.0, 0.536)
    """
    if step < warmup:
        return (step + 1) / warmup
    return math.pow(1 - (step - warmup) / max(1, steps - warmup), 0.9)


@dataclass
class Run:
    """A training run in its whole state.

    Attributes:
        model: In training.
        tasks: Whose losses are minimised.
        made: The optimiser.
        step: Steps done.
        balancing: How the losses become gradients; `None` minimises their weighted sum.
        curves: What the losses were.
        seconds: Spent in steps.
    """

    model: nn.Module
    tasks: tuple[Task, ...]
    made: torch.optim.Optimizer
    balancing: Balancing | None = None
    step: int = 0
    curves: Curves = field(default_factory=dict)
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        """Everything that another run needs to branch off here, in plain types and tensors."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.made.state_dict(),
            "balancing": {} if self.balancing is None else self.balancing.state_dict(),
            "step": self.step,
            "curves": self.curves,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where another run of the same shape was."""
        self.model.load_state_dict(state["model"])
        self.made.load_state_dict(state["optimiser"])
        if self.balancing is not None:
            self.balancing.load_state_dict(state["balancing"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.curves = {task: [list(pair) for pair in pairs] for task, pairs in state["curves"].items()}

    def take_over(self, other: Run) -> None:
        """Go on from where another run was, with all that it has; what only this one has stays as it is."""
        old = dict(other.model.named_parameters())
        self.model.load_state_dict(other.model.state_dict(), strict=False)
        for name, parameter in self.model.named_parameters():
            if name in old and old[name] in other.made.state:
                kept = other.made.state[old[name]]
                self.made.state[parameter] = {key: value.clone() for key, value in kept.items()}
        self.step, self.seconds = other.step, other.seconds
        self.curves = {task: [list(pair) for pair in pairs] for task, pairs in other.curves.items()}


def step(run: Run, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """One step of training on a batch: forward, backward and update, by the learning rates the optimiser has.

    Returns:
        The tasks' losses before the step, without weights.

    Raises:
        FloatingPointError: A loss is not finite; names task and step.
    """
    losses = task_losses(run.model, batch, run.tasks)
    for task, loss in losses.items():  # before the update, so that a later look finds the weights still sound
        if not bool(loss.isfinite()):
            raise FloatingPointError(
                f"the loss of task {task!r} is {loss.item()} at step {run.step + 1}: lower the learning rate."
            )
    terms = weighted(losses, run.tasks)
    if run.balancing is None:
        torch.stack(list(terms.values())).sum().backward()
    else:
        run.balancing(run.model, terms)
    run.made.step()
    run.made.zero_grad(set_to_none=True)
    if run.balancing is not None:
        run.balancing.after_step(lambda: weighted(task_losses(run.model, batch, run.tasks), run.tasks))
    run.step += 1
    return {task: loss.detach() for task, loss in losses.items()}


def train(
    run: Run,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    steps: int,
    until: int,
    advance: Callable[[int], None],
    every: int = 25,
) -> None:
    """Train up to step `until` of a schedule over `steps`, on the weighted losses of the tasks.

    Args:
        run: Changed in place.
        split: What to train on.
        recipe: How.
        seed: Of the data order; runs that share it see the same batches.
        steps: Length of the schedule.
        until: Stop before this step.
        advance: Told the number of steps done, now and then.
        every: Steps between two points of the curves.

    Raises:
        FloatingPointError: A loss is not finite; names task and step.
    """
    run.model.train()
    sums: dict[str, Tensor] = {}
    summed_from = run.step
    began = perf_counter()
    for rows in data_order(len(split), recipe.batch, until, seed, run.step):
        for group in run.made.param_groups:
            peak = recipe.learning_rate * recipe.row_rate * group["rate"]
            risen = (run.step - group.get("since", 0) + 1) / max(1, group.get("warmup", 0))
            group["lr"] = peak * min(1.0, risen) * schedule(run.step, steps, recipe.warmup)
        for task, loss in step(run, split.batch(rows)).items():
            sums[task] = sums.get(task, torch.zeros(())) + loss
        if run.step % every == 0 or run.step == until:
            for task, total in sums.items():
                mean = float(total) / (run.step - summed_from)
                run.curves.setdefault(task, []).append([run.step, mean])
            sums, summed_from = {}, run.step
            advance(run.step)
    run.seconds += perf_counter() - began


@torch.no_grad()
def settle_statistics(model: nn.Module, split: Split, *, batch: int = 64) -> None:
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
    for start in range(0, len(split), batch):
        model(split.batch(slice(start, start + batch))["image"])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


@torch.no_grad()
def predictions(model: nn.Module, split: Split, rows: slice) -> dict[str, Tensor]:
    """What the model gives for some images of a split."""
    model.eval()
    return model(split.batch(rows)["image"])


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, tasks: Sequence[Task], *, batch: int = 50) -> dict[str, float]:
    """Each task's metric over a whole split."""
    metrics = {task.name: task.metric() for task in tasks}
    for start in range(0, len(split), batch):
        rows = slice(start, start + batch)
        outputs, targets = predictions(model, split, rows), split.batch(rows)
        for task in tasks:
            metrics[task.name].update(outputs[task.name], targets[task.name])
    return {name: float(metric.compute()) for name, metric in metrics.items()}
