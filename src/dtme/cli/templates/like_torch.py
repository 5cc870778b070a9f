"""Your model for `dtme`: torch's own encoder, a head per task, and made-up series until you put yours here.

dtme doctor mine.py
dtme analyze mine.py --out report.json
dtme plan report.json --max-cost 1.5 --out plan.json
dtme cost mine.py plan.json
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Multitask(nn.Module):
    """One trunk for all tasks. Heads in a `ModuleDict` called like the tasks are found by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, norm_first=True)
        self.trunk = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.heads = nn.ModuleDict({"next": nn.Linear(64, 6), "trend": nn.Linear(64, 1)})

    def forward(self, series: Tensor) -> dict[str, Tensor]:
        """Every task's output."""
        last = self.trunk(self.embed(series))[:, -1]
        return {task: head(last) for task, head in self.heads.items()}


def model() -> nn.Module:
    """The model, with the weights it is trained from: load your checkpoint here. An untrained trunk says little."""
    return Multitask().to(DEVICE)


def task_losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Each task's loss, a scalar, without weights. A task that a batch has no labels for is left out."""
    series, following = (value.to(DEVICE) for value in batch)
    output = model(series)
    rises = (following.mean(1) > series[:, -1].mean(1)).float()
    return {
        "next": F.mse_loss(output["next"], following),
        "trend": F.binary_cross_entropy_with_logits(output["trend"][:, 0], rises),
    }


def batches() -> Iterable[tuple[Tensor, Tensor]]:
    """Batches in random order: those read first speak for the rest. Under torchrun, each process takes its share of them."""
    walks = torch.randn(256, 13, 6, generator=torch.Generator().manual_seed(0)).cumsum(1)  # yours: your own data
    return DataLoader(TensorDataset(walks[:, :-1], walks[:, -1]), batch_size=16, shuffle=True)


# Heads that are no ModuleDict: say where each task leaves the trunk, by the name of a module.
# def branches(model):
#     return {"next": "next_head", "trend": "trend_head"}

# In training, before the optimizer is made:
# dtme.apply(model, dtme.Plan.load("plan.json"))
