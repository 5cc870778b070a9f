"""What a benchmark suite is: images, one target per task, and for each task its loss and its metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dtme._shapes import Float, Int, Shaped

if TYPE_CHECKING:
    from torchmetrics import Metric

    from dtme.viz.samples import Kind


@dataclass(frozen=True)
class Task:
    """One thing to predict at every pixel.

    Attributes:
        name: The task's name, a key of the model's outputs and of a split's targets.
        channels: Channels of the prediction.
        loss: `loss(prediction, target)`, a scalar; prediction `(B, channels, H, W)`, target as stored in the split.
        metric: Makes a fresh metric, updated with the same pair as the loss; `higher_is_better` is set on it.
        metric_name: How the metric is headed in a table, with its unit.
        kind: How a prediction is drawn.
        weight: Of the loss in the sum that is minimised.
    """

    name: str
    channels: int
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[], Metric]
    metric_name: str
    kind: Kind
    weight: float = 1.0


@dataclass(frozen=True)
class Split:
    """Images and their targets, held in memory in compact types.

    Attributes:
        images: RGB, 8 bits a channel.
        targets: Per task name, a tensor whose first dimension is the image.
    """

    images: Shaped[Tensor, "n 3 h w"]
    targets: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Int[Tensor, " b"] | slice) -> dict[str, Tensor]:
        """The named rows: `image`, normalised to about zero mean and unit range, and every task's target."""
        return {"image": normalise(self.images[rows]), **{name: target[rows] for name, target in self.targets.items()}}


@dataclass(frozen=True)
class Suite:
    """A benchmark: its tasks and its splits.

    Attributes:
        name: As the command line calls it.
        tasks: In the order of every table.
        pretrain: Images of the same kind that no other split holds, on which the shared trunk is trained before.
        train: What every row trains on.
        test: What every row is measured on.
        val: What settings are chosen on, where it was asked for.
    """

    name: str
    tasks: tuple[Task, ...]
    pretrain: Split
    train: Split
    test: Split
    val: Split | None = None

    def weighted(self, weights: Mapping[str, float]) -> Suite:
        """The same suite with these weights of its losses."""
        return replace(self, tasks=tuple(replace(task, weight=weights[task.name]) for task in self.tasks))


def normalise(images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """8-bit images as floats around zero."""
    return images.to(torch.float32).sub_(127.5).div_(63.75)
