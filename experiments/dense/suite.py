"""What a benchmark suite is: images, one target per task, and for each task its loss and its metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dtme._shapes import Float, Int, Shaped
from experiments.runner.seeds import hash_of

if TYPE_CHECKING:
    from torchmetrics import Metric

    from experiments.figures.samples import Kind


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
        measured_on: Key of the target that the metric is updated with, where that is not the one of the loss.
    """

    name: str
    channels: int
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[], Metric]
    metric_name: str
    kind: Kind
    weight: float = 1.0
    measured_on: str = ""


Batch = dict[str, Tensor]
"""`image`, as a model is given it, and the target of every task that something is known of."""


class Images(Protocol):
    """A split as the engine takes it: in memory, or on disk, where images are read and changed when they are asked for."""

    @property
    def device(self) -> torch.device:
        """Where batches come to lie."""
        ...

    @property
    def skipped(self) -> Mapping[str, str]:
        """Names of images of which something could not be read and was left out, as was asked for, each with the reason."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def batch(self, rows: slice) -> Batch:
        """Some images, as they are measured on."""
        ...

    def steps(self, size: int, seed: int, until: int, start: int = 0) -> Iterable[Batch]:
        """The batches of the training steps from `start` on: a function of seed and step; it can be read more than once."""
        ...

    def in_order(self, size: int) -> Iterable[Batch]:
        """Every image once."""
        ...

    def pictures(self, rows: slice) -> tuple[Shaped[Tensor, "n 3 h w"], dict[str, Tensor]]:
        """Some images to look at, 8 bits a channel, and their targets."""
        ...


@dataclass(frozen=True)
class Split:
    """Images and their targets, held in memory in compact types.

    Attributes:
        images: RGB, 8 bits a channel.
        targets: Per task name, a tensor whose first dimension is the image.
    """

    images: Shaped[Tensor, "n 3 h w"]
    targets: Mapping[str, Tensor]

    @property
    def device(self) -> torch.device:
        """Memory is the processor's."""
        return torch.device("cpu")

    @property
    def skipped(self) -> Mapping[str, str]:
        """All of it was read."""
        return {}

    def __len__(self) -> int:
        return len(self.images)

    def some(self, rows: Int[Tensor, " n"] | slice) -> Split:
        """The named rows alone."""
        return Split(self.images[rows], {name: target[rows] for name, target in self.targets.items()})

    def batch(self, rows: Int[Tensor, " b"] | slice) -> Batch:
        """The named rows: `image`, normalised to about zero mean and unit range, and every task's target."""
        return {"image": normalise(self.images[rows]), **{name: target[rows] for name, target in self.targets.items()}}

    def steps(self, size: int, seed: int, until: int, start: int = 0) -> Iterable[Batch]:
        """As of `Images`."""
        return Again(lambda: map(self.batch, data_order(len(self), size, until, seed, start)))

    def in_order(self, size: int) -> Iterable[Batch]:
        """As of `Images`."""
        return Again(lambda: (self.batch(slice(start, start + size)) for start in range(0, len(self), size)))

    def pictures(self, rows: slice) -> tuple[Shaped[Tensor, "n 3 h w"], dict[str, Tensor]]:
        """As of `Images`."""
        return self.images[rows], {name: target[rows] for name, target in self.targets.items()}


@dataclass(frozen=True)
class Again:
    """Batches that are made anew whenever they are read.

    Attributes:
        make: Begins to make them.

    Example:
        >>> squares = Again(lambda: (number**2 for number in range(3)))
        >>> list(squares) == list(squares) == [0, 1, 4]
        True
    """

    make: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


def data_order(samples: int, batch: int, steps: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """The rows of each step from `start` on: epochs of shuffled samples, a function of the seed and the step alone.

    Example:
        >>> whole = [rows.tolist() for rows in data_order(10, 3, 7, seed=1)]
        >>> whole[4:] == [rows.tolist() for rows in data_order(10, 3, 7, seed=1, start=4)]
        True
    """
    per_epoch = samples // batch
    if not per_epoch:
        raise ValueError(f"batch={batch}: the split holds only {samples} samples. Use a smaller batch.")
    epoch, order = -1, torch.empty(0, dtype=torch.long)
    for step in range(start, steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = torch.randperm(samples, generator=torch.Generator().manual_seed(hash_of(seed, "epoch", epoch)))
        place = step % per_epoch * batch
        yield order[place : place + batch]


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
    pretrain: Images
    train: Images
    test: Images
    val: Images | None = None

    def weighted(self, weights: Mapping[str, float]) -> Suite:
        """The same suite with these weights of its losses."""
        return replace(self, tasks=tuple(replace(task, weight=weights[task.name]) for task in self.tasks))


def normalise(images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """8-bit images as floats around zero."""
    return images.to(torch.float32).sub_(127.5).div_(63.75)
