"""What every model of the study is: a trunk that all tasks share, and heads."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from experiments.dense.suite import Task


class MultiTaskModel(nn.Module):
    """One trunk, and what each task makes of its tokens.

    Attributes:
        trunk: What all tasks share, a module with blocks.
        heads: Where each task leaves it.
        blocks: Which modules are the trunk's blocks, as `dtme.find_blocks` takes it; `None` where it finds them.
    """

    blocks: ClassVar[str | None] = None
    trunk: Any
    heads: nn.ModuleDict

    def add_task(self, task: Task) -> None:
        """Give a task its head, drawn at random."""
        raise NotImplementedError


class Head(nn.Sequential):
    """A 3x3 convolution with batch norm, then a linear map from each token to the pixels of its patch."""

    def __init__(self, width: int, hidden: int, channels: int, patch: int) -> None:
        super().__init__(
            nn.Conv2d(width, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, channels * patch * patch, 1),
            nn.PixelShuffle(patch),
        )
