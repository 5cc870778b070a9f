"""Weightings: the tasks' losses are weighted, and one backward pass of their sum does the rest.

TorchJD has these three too, and the tests hold ours against them step by step; here the history of a run is part of
`state_dict`, so that it can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from experiments.baselines.balancing import Balancing


class UW(Balancing):
    """Uncertainty weighting: the weights are learnt with the model, as the inverse of each task's variance.

        L = sum_i 1/2 exp(-s_i) L_i + 1/2 s_i,    s_i = log sigma_i^2 = 0 at the start

    Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics", CVPR
    2018. The optimiser has to be given `parameters()`, in a group without weight decay.

    Args:
        tasks: All of them, in any order.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks)))

    def forward(self, model: nn.Module, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add one step's gradients to the parameters' `.grad`, those of the log variances included."""
        values = in_order(losses, self.tasks)
        weights = 0.5 * torch.exp(-self.log_variance)
        (weights * values + 0.5 * self.log_variance).sum().backward()
        return dict(zip(self.tasks, weights.detach().unbind(), strict=True))


class DWA(Balancing):
    """Dynamic weight average: a task whose loss fell less over the last epochs gets more weight.

        L = sum_i w_i L_i,    w_i = K exp(r_i / T) / sum_j exp(r_j / T),    r_i = mean L_i of epoch t - 1 / of epoch t - 2

    and w = 1 in the first two epochs. Liu, Johns & Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019,
    Eq. 7.

    Args:
        tasks: All of them, in any order.
        steps_per_epoch: Steps over which a loss is averaged.
        temperature: T, 2 in the paper; the larger, the more equal the weights.
    """

    total: Tensor
    means: Tensor
    step: Tensor

    def __init__(self, tasks: Sequence[str], steps_per_epoch: int, temperature: float = 2.0) -> None:
        super().__init__()
        if steps_per_epoch < 1 or not temperature > 0:
            raise ValueError(f"steps_per_epoch={steps_per_epoch}, temperature={temperature}: give numbers above 0.")
        self.tasks = tuple(tasks)
        self.steps_per_epoch = steps_per_epoch
        self.temperature = temperature
        self.register_buffer("total", torch.zeros(len(self.tasks)))
        self.register_buffer("means", torch.ones(2, len(self.tasks)))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, model: nn.Module, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add one step's gradients to the parameters' `.grad`."""
        values = in_order(losses, self.tasks)
        step = int(self.step)
        if step and step % self.steps_per_epoch == 0:
            self.means = torch.stack([self.means[1], self.total / self.steps_per_epoch])
            self.total = torch.zeros_like(self.total)
        weights = torch.ones_like(values)
        if step >= 2 * self.steps_per_epoch:
            weights = len(self.tasks) * torch.softmax(self.means[1] / self.means[0] / self.temperature, 0).to(values)
        (weights.detach() * values).sum().backward()
        self.total = self.total + values.detach()
        self.step += 1
        return dict(zip(self.tasks, weights.unbind(), strict=True))


class FAMO(Balancing):
    """FAMO: weights by which all losses fall at one rate, learnt from how the losses changed over a step.

        L = c sum_i z_i log(L_i + eps),    z = softmax(w),    c = 1 / sum_i z_i / (L_i + eps), held fixed
        w <- Adam(w, dz/dw^T [log L_i(before) - log L_i(after the step, on the same batch)])

    Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, Algorithm 2. `after_step` costs one more forward
    pass. Losses must not be negative.

    Args:
        tasks: All of them, in any order.
        rate: Learning rate of w, 0.025 in the paper.
        decay: Of w, the paper's gamma.
    """

    logits: Tensor
    before: Tensor
    mean: Tensor
    square: Tensor
    step: Tensor

    EPSILON = 1e-8

    def __init__(self, tasks: Sequence[str], rate: float = 0.025, decay: float = 1e-3) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.rate = rate
        self.decay = decay
        for name in ("logits", "before", "mean", "square"):
            self.register_buffer(name, torch.zeros(len(self.tasks)))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, model: nn.Module, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add one step's gradients to the parameters' `.grad`; `after_step` has to follow."""
        values = self._not_negative(losses)
        shares = torch.softmax(self.logits, 0)
        c = 1 / (shares / values.detach()).sum()
        (c * shares * values.log()).sum().backward()
        self.before = values.detach().log()
        return dict(zip(self.tasks, (c * shares / values.detach()).unbind(), strict=True))

    @torch.no_grad()
    def after_step(self, again: Callable[[], Mapping[str, Tensor]]) -> None:
        """Learn from what the step did to the losses, by one step of Adam with the usual moments."""
        fallen = self.before - self._not_negative(again()).log()
        shares = torch.softmax(self.logits, 0)
        gradient = shares * (fallen - (shares * fallen).sum()) + self.decay * self.logits
        self.step += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient.square()
        mean, square = self.mean / (1 - 0.9 ** int(self.step)), self.square / (1 - 0.999 ** int(self.step))
        self.logits = self.logits - self.rate * mean / (square.sqrt() + 1e-8)

    def _not_negative(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = in_order(losses, self.tasks)
        for task, value in zip(self.tasks, values.detach().tolist(), strict=True):
            if not value >= 0:
                raise ValueError(f"FAMO takes the logarithm of losses, and that of task {task!r} is {value}: shift it.")
        return values + self.EPSILON


def in_order(losses: Mapping[str, Tensor], tasks: Sequence[str]) -> Tensor:
    """The losses as one vector.

    Raises:
        ValueError: They are not those of the tasks, each once.
    """
    if set(losses) != set(tasks):
        raise ValueError(
            f"losses are of {tuple(losses)}, the weighting was made for {tuple(tasks)}: give all of these."
        )
    return torch.stack([losses[task].reshape(()) for task in tasks])
