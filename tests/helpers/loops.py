"""One tiny model, with dropout, and its data, for every training loop that people have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

import dtme
from dtme.integrations import LossWeights

TASKS = ("kind", "size")
BLOCK = "trunk.layers.{}".format
PLAN = dtme.Plan(TASKS, {BLOCK(1): TASKS}, {BLOCK(2): ("kind",)}, {BLOCK(2): TASKS}, rank=2)
WIDTH, DEPTH = 8, 3


class TwoTasks(nn.Module):
    """Words to a class and a number, and the weighted sum of both losses where labels are given."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.words = nn.Embedding(20, WIDTH)
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.1, batch_first=True, norm_first=True)
            self.trunk = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
            self.heads = nn.ModuleDict({"kind": nn.Linear(WIDTH, 3), "size": nn.Linear(WIDTH, 1)})
            for parameter in self.trunk.parameters():  # the layers are copies of one: make them differ
                nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
        self.loss_weights = LossWeights(TASKS)

    def forward(self, words: Tensor, kind: Tensor | None = None, size: Tensor | None = None) -> dict[str, Any]:
        tokens = self.trunk(self.words(words))
        out: dict[str, Any] = {task: head(tokens).mean(1) for task, head in self.heads.items()}
        if kind is None or size is None:
            return out
        losses = losses_of(out, kind, size)
        return {"loss": self.loss_weights(losses), **out}


def losses_of(out: Mapping[str, Tensor], kind: Tensor, size: Tensor) -> dict[str, Tensor]:
    return {
        "kind": functional.cross_entropy(out["kind"], kind),
        "size": 10 * functional.mse_loss(out["size"].squeeze(-1), size),
    }


def task_losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return losses_of(model(batch["words"]), batch["kind"], batch["size"])


class Words(Dataset[dict[str, Tensor]]):
    """Sequences of six words, whose labels follow from them."""

    def __init__(self, samples: int = 32, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.words = torch.randint(20, (samples, 6), generator=generator)

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        words = self.words[place]
        return {"words": words, "kind": words.sum() % 3, "size": words.float().mean() / 20}


def own_batches(samples: int = 8, size: int = 4) -> list[dict[str, Tensor]]:
    """Batches for analyses."""
    rows = [Words(samples, seed=1)[place] for place in range(samples)]
    return [
        {name: torch.stack([row[name] for row in rows[first : first + size]]) for name in rows[0]}
        for first in range(0, samples, size)
    ]


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """The same keys and the same bits."""
    assert one.keys() == other.keys()
    different = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert not different, different
