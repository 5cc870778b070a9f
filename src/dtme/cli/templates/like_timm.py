"""Your model for `dtme`: a trunk of timm, a head per task, and made-up images until you put yours here.

dtme doctor mine.py
dtme analyze mine.py --out report.json
dtme plan report.json --max-cost 1.5 --out plan.json
dtme cost mine.py plan.json
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Multitask(nn.Module):
    """One trunk for all tasks. Heads in a `ModuleDict` called like the tasks are found by themselves."""

    def __init__(self) -> None:
        super().__init__()
        # Yours: the name you train, and pretrained=True. An untrained trunk says little about where tasks will conflict.
        self.trunk: Any = timm.create_model(
            "vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=64, depth=4
        )
        width = self.trunk.num_features
        self.heads = nn.ModuleDict({"colour": nn.Linear(width, 3), "brightness": nn.Linear(width, 1)})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Every task's output."""
        features = self.trunk.forward_features(image).mean(1)
        return {task: head(features) for task, head in self.heads.items()}


class Images(Dataset):
    """Noise in three colours. Yours: your own images and labels."""

    def __len__(self) -> int:
        """How many there are."""
        return 256

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One image with the label of each task."""
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, 64, 64, generator=generator) + torch.randn(3, 1, 1, generator=generator)
        means = image.mean((1, 2))
        return {"image": image, "colour": means.argmax(), "brightness": means.mean()}


def model() -> nn.Module:
    """The model, with the weights it is trained from: load your checkpoint here."""
    return Multitask().to(DEVICE)


def task_losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each task's loss, a scalar, without weights. A task that a batch has no labels for is left out."""
    batch = {name: value.to(DEVICE) for name, value in batch.items()}
    output = model(batch["image"])
    return {
        "colour": F.cross_entropy(output["colour"], batch["colour"]),
        "brightness": F.mse_loss(output["brightness"][:, 0], batch["brightness"]),
    }


def batches() -> Iterable[dict[str, Tensor]]:
    """Batches in random order: those read first speak for the rest. Under torchrun, each process takes its share of them."""
    return DataLoader(Images(), batch_size=16, shuffle=True)


# Heads that are no ModuleDict: say where each task leaves the trunk, by the name of a module.
# def branches(model):
#     return {"colour": "colour_head", "brightness": "brightness_head"}

# In training, before the optimizer is made:
# dtme.apply(model, dtme.Plan.load("plan.json"))
