"""What is measured: a vision transformer of published size with a linear head for each of K = 4 dense tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clock import Work
from dtme.trunk.blocks import find_blocks

TASKS = ("depth", "edges", "normals", "semseg")
CHANNELS = 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Multitask(nn.Module):
    """A trunk of timm, and a linear head per task on its tokens."""

    def __init__(self, name: str, pixels: int, tasks: tuple[str, ...] = TASKS, **changes: Any) -> None:
        super().__init__()
        trunk: Any = timm.create_model(name, img_size=pixels, num_classes=0, **changes)
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: nn.Linear(trunk.embed_dim, CHANNELS) for task in tasks})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The tokens of the trunk through every head."""
        tokens = self.trunk.forward_features(images)
        return {task: head(tokens) for task, head in self.heads.items()}


def task_losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A mean squared error per task."""
    return {task: (out - batch[task]).square().mean() for task, out in model(batch["image"]).items()}


@dataclass(frozen=True)
class Size:
    """A trunk and what is put into it.

    Attributes:
        trunk: Its name in timm.
        pixels: Height and width of the images.
        samples: In a batch.
        depth: Blocks D, `None` for as many as are published.
        tasks: Dense ones, with a linear head each.
    """

    trunk: str = "vit_tiny_patch16_224"
    pixels: int = 112
    samples: int = 16
    depth: int | None = None
    tasks: tuple[str, ...] = TASKS

    def model(self) -> Multitask:
        """A model with random weights, in evaluation mode."""
        torch.manual_seed(0)
        changes = {} if self.depth is None else {"depth": self.depth}
        return Multitask(self.trunk, self.pixels, self.tasks, **changes).eval().to(DEVICE)

    def batch(self, seed: int = 0, times: int = 1) -> dict[str, Tensor]:
        """A batch of noise, so many times as large."""
        generator = torch.Generator().manual_seed(seed)
        samples, tokens = self.samples * times, (self.pixels // 16) ** 2 + 1
        batch = {"image": torch.randn(samples, 3, self.pixels, self.pixels, generator=generator)}
        batch |= {task: torch.randn(samples, tokens, CHANNELS, generator=generator) for task in self.tasks}
        return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def last_half(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The blocks of the second half of the trunk, for all tasks."""
    blocks = list(find_blocks(model))
    return dict.fromkeys(blocks[len(blocks) // 2 :], TASKS)


def first_half(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The blocks of the first half."""
    blocks = list(find_blocks(model))
    return dict.fromkeys(blocks[: len(blocks) // 2], TASKS)


def inference(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """A forward pass without gradients."""
    with torch.no_grad():
        model(batch["image"])


def step(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Forward and backward of a training step; what the optimiser adds is the same for all that is compared."""
    model.train()
    torch.stack(list(task_losses(model, batch).values())).sum().backward()
    model.zero_grad(set_to_none=True)
    model.eval()


def flops(work: Work) -> int:
    """Floating-point operations, attention counted as the products it is made of."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
