"""Models on a trunk of timm's: what stands behind it, and the precision that passes are computed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from dtme._shapes import Float
from experiments.dense.backbones.recipe import BackboneRecipe
from experiments.dense.backbones.trunk import autocast, make_trunk
from experiments.dense.multi_task_model import Head, MultiTaskModel
from experiments.dense.suite import Task


def empty_model(recipe: BackboneRecipe, tasks: Sequence[str]) -> MultiTaskModel:
    """The model of a recipe, with a random trunk and without what is a task's own.

    Args:
        recipe: Which trunk, and what stands behind it.
        tasks: Names of those that it is going to have.
    """
    if recipe.decoder in ("conv", "linear", "pixels"):
        return OwnDecoders(recipe)
    from experiments.dense.backbones import meeting

    return (meeting.InvPT if recipe.decoder == "invpt" else meeting.TaskPrompter)(recipe, tasks)


class OwnDecoders(MultiTaskModel):
    """One decoder per task, each of which reads the trunk's tokens at several depths.

    Example:
        >>> recipe = BackboneRecipe(size=(32, 48), width=12, depth=4, attention_heads=2, head_width=8)
        >>> model = OwnDecoders(recipe)
        >>> model.add_task(Task("depth", 1, F.l1_loss, lambda: None, "RMSE", "depth"))
        >>> model(torch.zeros(2, 3, 32, 48))["depth"].shape
        torch.Size([2, 1, 32, 48])
    """

    blocks = r"trunk\.blocks\.\d+"

    def __init__(self, recipe: BackboneRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.trunk = make_trunk(recipe)
        self.heads = nn.ModuleDict()
        self.read = quarters(recipe.depth) if recipe.features == "quarters" else []

    def add_task(self, task: Task) -> None:
        """As of `MultiTaskModel`."""
        inputs = self.recipe.width * (len(self.read) + 1)
        if self.recipe.decoder == "pixels":
            self.heads[task.name] = PixelDecoder(inputs, self.recipe.head_width, task.channels, self.recipe.patch)
            return
        hidden = self.recipe.head_width if self.recipe.decoder == "conv" else 0
        self.heads[task.name] = Decoder(inputs, hidden, task.channels, self.recipe.height_width)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """A prediction per task, at the resolution of the images."""
        with autocast(images, self.recipe):
            levels = self.levels(self.prepared(images))
            return {task: head(levels) for task, head in self.heads.items()}

    def prepared(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Images as the trunk's weights were trained on, where whoever read them has not made them so."""
        if self.recipe.from_images is None:
            return images
        factor, offset = self.recipe.from_images
        mean, spread = (images.new_tensor(of).view(3, 1, 1) for of in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        return (images * factor + offset - mean) / spread

    def levels(self, images: Float[Tensor, "b 3 h w"]) -> list[Any]:
        """The tokens behind the earlier quarters of the blocks as they are, and the last ones behind the trunk's norm."""
        made: Any = self.trunk.forward_intermediates(images, indices=self.read or [self.recipe.depth - 1])
        last, earlier = made
        rows, columns = self.recipe.grid
        last = last[:, self.trunk.num_prefix_tokens :].transpose(1, 2).unflatten(2, (rows, columns))
        return [*(earlier if self.read else []), last]


class Decoder(nn.Module):
    """From the tokens at several depths, concatenated, to a map at the size of the images, enlarged bilinearly.

    Args:
        inputs: Channels of all of them.
        hidden: Channels behind a 3x3 convolution with batch norm and ReLU; 0 leaves it out.
        channels: Of the prediction.
        size: Height and width of the images.
    """

    def __init__(self, inputs: int, hidden: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.unit = nn.Sequential()
        if hidden:
            convolution = nn.Conv2d(inputs, hidden, 3, padding=1, bias=False)
            self.unit.extend([convolution, nn.BatchNorm2d(hidden), nn.ReLU()])
        self.predict = nn.Conv2d(hidden or inputs, channels, 1)
        self.size = size

    def forward(self, levels: Sequence[Float[Tensor, "b c h w"]]) -> Float[Tensor, "b out H W"]:
        """The prediction, in float32."""
        small = self.predict(self.unit(torch.cat(list(levels), 1)))
        return F.interpolate(small.float(), self.size, mode="bilinear", align_corners=False)


class PixelDecoder(Head):
    """The head of the suites' own model, on the tokens at several depths."""

    def forward(self, levels: Sequence[Float[Tensor, "b c h w"]]) -> Float[Tensor, "b out H W"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The prediction, in float32."""
        return super().forward(torch.cat(list(levels), 1)).float()


def quarters(depth: int) -> list[int]:
    """The last blocks of the first three quarters, by number; fewer of a trunk of fewer than four blocks.

    >>> quarters(12), quarters(24), quarters(2)
    ([2, 5, 8], [5, 11, 17], [0])
    """
    return sorted({place for place in (depth * quarter // 4 - 1 for quarter in (1, 2, 3)) if place >= 0})
