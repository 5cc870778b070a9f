"""The weighted sum of the tasks' losses, which remembers what each of them was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn


class LossWeights(nn.Module):
    """Sums the losses of tasks under weights, all 1 at first, and keeps the mean of each loss as it was given.

    Make it a module of the model, `self.loss_weights = LossWeights(tasks)`: its weights are a buffer, so that checkpoints of
    every loop hold them. `Expand` sets them to `report.even_weights()`, if it is given this.

    Args:
        tasks: Their names.
        weights: By task; those left out are 1.

    Example:
        >>> loss_weights = LossWeights(("depth", "semseg"), {"depth": 2.0})
        >>> loss_weights({"depth": torch.tensor(3.0, requires_grad=True), "semseg": torch.tensor(1.0)})
        tensor(7., grad_fn=<...>)
        >>> loss_weights.take_means()
        {'depth': 3.0, 'semseg': 1.0}
    """

    values: Tensor

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.register_buffer("values", torch.ones(len(self.tasks)))
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self.set(weights or {})

    def set(self, weights: Mapping[str, float]) -> None:
        """Set the weights of some tasks.

        Raises:
            ValueError: A task is unknown, or a weight is not finite or below 0.
        """
        for task, weight in weights.items():
            if task not in self.tasks:
                raise ValueError(f"LossWeights: unknown task {task!r}; there are {self.tasks}.")
            if not 0 <= weight < float("inf"):
                raise ValueError(
                    f"LossWeights: the weight of {task!r} is {weight}; give a finite number of at least 0."
                )
            self.values[self.tasks.index(task)] = weight

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the losses; a task that a batch says nothing about may be missing.

        Raises:
            ValueError: There is no loss, or one of an unknown task.
        """
        unknown = [task for task in losses if task not in self.tasks]
        if unknown or not losses:
            raise ValueError(f"LossWeights: losses of {tuple(losses)} were given; there are the tasks {self.tasks}.")
        if self.training and torch.is_grad_enabled():
            for task, loss in losses.items():
                total, count = self._sums.get(task, (0.0, 0))
                self._sums[task] = total + loss.detach(), count + 1
        return torch.stack([self.values[self.tasks.index(task)] * loss for task, loss in losses.items()]).sum()

    def take_means(self) -> dict[str, float]:
        """The mean of each task's own loss over the training batches since the last call, without its weight."""
        means = {task: float(self._sums[task][0]) / self._sums[task][1] for task in self.tasks if task in self._sums}
        self._sums.clear()
        return means


def loss_weights_of(model: nn.Module) -> Iterator[LossWeights]:
    """Those that are modules of a model."""
    return (module for module in model.modules() if isinstance(module, LossWeights))
