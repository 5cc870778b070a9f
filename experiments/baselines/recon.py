"""Recon: the layers in which the tasks' parameter gradients conflict most often become each task's own.

    s_k = sum over steps of the number of pairs i < j with cos(g_i^k, g_j^k) < S

Train all tasks together for a quarter of the steps and count; give each task its own copy of the layers with the highest
`s_k`; train anew from the first weights:

    counting = ConflictCount(model, severity=-0.02)          # in the place of loss.backward(), for the first quarter
    model = OwnCopies(fresh_model, tasks, counting.top(22))  # train it as any other model

Shi et al., "Recon: Reducing Conflicting Gradients from the Root for Multi-Task Learning", ICLR 2023, Algorithm 1, written
from the paper.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from experiments.baselines.balancing import Balancing
from experiments.baselines.jacobian import add_sum, gramian, is_shared, stacked, task_gradients


class ConflictCount(Balancing):
    """Joint training, the plain sum of the losses, that counts for each shared layer how often its gradients conflict.

    A layer is a module without children, weight and bias together; a parameter that a larger module holds directly (class
    token, positions) is a layer for itself. Heads, which one task alone moves, never count.

    Args:
        model: Whose layers are counted.
        severity: S in (-1, 0]; a pair conflicts below it. The paper takes 0 on CityScapes, -0.02 on NYUv2 and
            PASCAL-Context, -0.05 on CelebA, -0.1 on MultiFashion+MNIST.

    Attributes:
        layers: Names, in the order of the model.
        scores: `s_k` so far, one per layer.
        steps: Steps counted.

    Raises:
        ValueError: `severity` is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh())
        >>> counting = ConflictCount(model)
        >>> for sign in (1.0, -1.0, -1.0):
        ...     output = model(torch.ones(1, 1)).sum()
        ...     _ = counting(model, {"a": output, "b": sign * output})
        >>> dict(zip(counting.layers, counting.scores.tolist())), counting.top(1)
        ({'0': 2}, ['0'])
    """

    scores: Tensor
    shared: Tensor
    steps: Tensor

    def __init__(self, model: nn.Module, severity: float = 0.0) -> None:
        super().__init__()
        if not -1 < severity <= 0:
            raise ValueError(f"severity={severity}: give a cosine above -1 and up to 0.")
        self.severity = severity
        self.layer_of = {name: _layer(model, name) for name, _ in model.named_parameters()}
        self.layers = tuple(dict.fromkeys(self.layer_of.values()))
        self.register_buffer("scores", torch.zeros(len(self.layers), dtype=torch.long))
        self.register_buffer("shared", torch.zeros(len(self.layers), dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, model: nn.Module, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add one step's gradients to the parameters' `.grad`, and count."""
        named = dict(model.named_parameters())
        blocks: dict[str, list[Tensor]] = {}
        for name, rows in task_gradients(model, losses).items():
            if is_shared(rows):
                blocks.setdefault(self.layer_of[name], []).append(stacked(rows))
            add_sum(named[name], rows)
        for place, layer in enumerate(self.layers):
            if layer in blocks:
                cosines = cosines_of(gramian(blocks[layer]))
                self.scores[place] += int((cosines.triu(1) < self.severity).sum())
                self.shared[place] = True
        self.steps += 1
        return dict.fromkeys(losses, torch.ones(()))

    def top(self, count: int) -> list[str]:
        """The shared layers with the highest scores, highest first; of equals the one that comes first in the model.

        Raises:
            ValueError: There are not so many shared layers, or nothing was counted.
        """
        shared = [place for place in range(len(self.layers)) if bool(self.shared[place])]
        if not 1 <= count <= len(shared):
            raise ValueError(
                f"count={count}: {len(shared)} shared layers were met in {int(self.steps)} steps. Give 1 to {len(shared)}."
            )
        return [self.layers[place] for place in sorted(shared, key=lambda place: -int(self.scores[place]))[:count]]


def cosines_of(products: Float[Tensor, "tasks tasks"]) -> Float[Tensor, "tasks tasks"]:
    """The cosines between the tasks' gradients from their products; 0 where a gradient is zero.

    Example:
        >>> cosines_of(torch.tensor([[4.0, -2.0, 0.0], [-2.0, 4.0, 0.0], [0.0, 0.0, 0.0]])).tolist()
        [[1.0, -0.5, 0.0], [-0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    lengths = products.diagonal().sqrt()
    return torch.nan_to_num(products / lengths[:, None] / lengths)


def _layer(model: nn.Module, parameter: str) -> str:
    holder = parameter.rpartition(".")[0]
    alone = not any(True for _ in model.get_submodule(holder).children())
    return holder if alone and holder else parameter
