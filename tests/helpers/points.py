"""The smallest model there is: a point whose tasks' losses are linear, so that their gradients are what is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from experiments.baselines import Balancing


class Point(nn.Module):
    """`L_i = J_i . theta`, with theta in two parameters, as a model's weights are in many."""

    def __init__(self, columns: int):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.rest = nn.Parameter(torch.zeros(columns - 1, dtype=torch.float64))

    def forward(self, jacobian: Tensor) -> dict[str, Tensor]:
        return {f"task {i}": row @ torch.cat([self.first, self.rest]) for i, row in enumerate(jacobian)}


def matrix(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def update_of(balancing: Balancing, jacobian: Tensor) -> Tensor:
    """What a balancing makes of a Jacobian."""
    point = Point(jacobian.shape[1])
    balancing(point, point(jacobian))
    return torch.cat([point.first.grad, point.rest.grad])
