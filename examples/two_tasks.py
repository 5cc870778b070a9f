"""What the examples of training loops share: a small model of two tasks, its data, its losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtme.integrations import LossWeights

TASKS = ("kind", "size")


class TwoTasks(nn.Module):
    """Words to a class and a number; where labels are given, also the weighted sum of the losses."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.words = nn.Embedding(20, 32)
        self.trunk = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.heads = nn.ModuleDict({"kind": nn.Linear(32, 3), "size": nn.Linear(32, 1)})
        self.loss_weights = LossWeights(TASKS)

    def forward(self, words: Tensor, kind: Tensor | None = None, size: Tensor | None = None) -> dict[str, Tensor]:
        """Predictions, and the loss."""
        tokens = self.trunk(self.words(words))
        out = {task: head(tokens).mean(1) for task, head in self.heads.items()}
        return out if kind is None or size is None else {**out, "loss": self.loss_weights(losses_of(out, kind, size))}


def losses_of(out: dict[str, Tensor], kind: Tensor, size: Tensor) -> dict[str, Tensor]:
    """Each task's loss."""
    return {
        "kind": functional.cross_entropy(out["kind"], kind),
        "size": functional.mse_loss(out["size"].squeeze(-1), size),
    }


def task_losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each task's loss on a batch, for the analysis."""
    return losses_of(model(batch["words"]), batch["kind"], batch["size"])


def samples(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Sequences of six words, whose labels follow from them."""
    words = torch.randint(20, (count, 6), generator=torch.Generator().manual_seed(seed))
    return [{"words": row, "kind": row.sum() % 3, "size": row.float().mean() / 20} for row in words]
