"""What a user has before `dtme`: data, losses and a training loop, here for rendered rooms with four dense tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from experiments.dense.losses import balanced_edge_loss, depth_loss, normals_loss, segmentation_loss
from experiments.dense.scenes import Label, render_split

CHANNELS = {"semseg": len(Label), "depth": 1, "normals": 3, "edges": 1}
LOSSES = {"semseg": segmentation_loss, "depth": depth_loss, "normals": normals_loss, "edges": balanced_edge_loss}

Batch = Mapping[str, Tensor]
TaskLosses = Callable[[nn.Module, Batch], dict[str, Tensor]]


def draw(images: int, batch_size: int = 8) -> list[Batch]:
    """Batches of images of 64x64 pixels and every task's targets."""
    split = render_split("train", images)
    return [split.batch(slice(start, start + batch_size)) for start in range(0, images, batch_size)]


def train(
    model: nn.Module, task_losses: TaskLosses, batches: Sequence[Batch], optimizer: torch.optim.Optimizer, steps: int
) -> None:
    """A loop like any other."""
    for step in range(steps):
        loss = torch.stack(list(task_losses(model, batches[step % len(batches)]).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, steps - 1):
            print(f"step {step + 1}: loss {loss.item():.3f}")
