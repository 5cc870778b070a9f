"""Decoders in which tasks meet behind the trunk, those of `examples/`, on a trunk of timm's size and weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dtme._shapes import Float
from experiments.dense.backbones.recipe import BackboneRecipe
from experiments.dense.backbones.trunk import autocast, make_trunk
from experiments.dense.multi_task_model import MultiTaskModel
from experiments.dense.suite import Task

EXAMPLES = Path(__file__).parents[3] / "examples"
LEVELS = 3
"""Of a trunk with task prompts."""


@cache
def example(name: str) -> ModuleType:
    """A module of `examples/`, found as when it is run by itself.

    Raises:
        ImportError: The folder is not beside the study.
    """
    if not (EXAMPLES / f"{name}.py").is_file():
        raise ImportError(f"decoder={name!r} is in {EXAMPLES / name}.py, which is not there: run from a whole clone.")
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(name)


class InvPT(MultiTaskModel):
    """Preliminary decoders, each a task's way out of the trunk, and the inverted pyramid in which all tasks attend to all.

    Two predictions per task are supervised, the final one and the preliminary one. What tasks share behind the trunk trains at
    the trunk's rate.
    """

    blocks = r"trunk\.blocks\.\d+"

    def __init__(self, recipe: BackboneRecipe, tasks: Sequence[str]) -> None:
        super().__init__()
        self.recipe = recipe
        self.trunk = make_trunk(recipe)
        self.thirds = [recipe.depth * third // 3 - 1 for third in (1, 2, 3)]
        self.heads = nn.ModuleDict()
        decoder = example("invpt").InvertedPyramid({}, recipe.width, recipe.head_width, 2)
        self.meeting = nn.ModuleDict(
            {"decoder": decoder}
        )  # its stages, in a dictionary, are not taken for blocks of the trunk

    def add_task(self, task: Task) -> None:
        """As of `MultiTaskModel`."""
        parts, channels = example("invpt"), self.recipe.head_width
        self.heads[task.name] = parts.PreliminaryDecoder(self.recipe.width, channels, task.channels)
        last = nn.Conv2d(channels, task.channels, 1)
        decoder: Any = self.meeting["decoder"]
        decoder.heads[task.name] = nn.Sequential(parts.ConvUnit(channels, channels), last)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, tuple[Tensor, Tensor]]:
        """Per task the final and the preliminary prediction, at the resolution of the images."""
        with autocast(images, self.recipe):
            levels = self.trunk.forward_intermediates(images, indices=self.thirds, norm=True, intermediates_only=True)
            left = {task: leave(levels) for task, leave in self.heads.items()}
            final = self.meeting["decoder"](left)
            return {task: (self._enlarged(out), self._enlarged(left[task].preliminary)) for task, out in final.items()}

    def _enlarged(self, small: Tensor) -> Tensor:
        return F.interpolate(small.float(), self.recipe.height_width, mode="bilinear", align_corners=False)


class TaskPrompter(MultiTaskModel):
    """A prompt per task that goes through the trunk with the patches, prompt decoders, and features taken from each other.

    The trunk is written by hand, in blocks that hand out their attention, and takes the weights of timm's by `prompted`; it has
    no class token.
    """

    blocks = r"trunk\.levels\.\d+\.blocks\.\d+"

    def __init__(self, recipe: BackboneRecipe, tasks: Sequence[str]) -> None:
        super().__init__()
        parts = example("taskprompter")
        self.recipe, self.tasks = recipe, tuple(tasks)
        self.trunk = parts.PromptedTrunk(
            len(tasks), recipe.grid, recipe.patch, recipe.width, recipe.attention_heads, LEVELS, recipe.depth // LEVELS
        )
        self.heads = nn.ModuleDict()
        self.reweighting: Any = parts.CrossTaskReweighting(tasks, recipe.head_width)
        self.predict = nn.ModuleDict()

    def add_task(self, task: Task) -> None:
        """As of `MultiTaskModel`."""
        recipe, channels = self.recipe, self.recipe.head_width
        self.heads[task.name] = example("taskprompter").PromptDecoder(
            self.tasks.index(task.name), len(self.tasks), recipe.width, channels, LEVELS, recipe.grid
        )
        small = nn.Conv2d(channels, task.channels * recipe.patch**2, 1)
        self.predict[task.name] = nn.Sequential(small, nn.PixelShuffle(recipe.patch))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """A prediction per task, at the resolution of the images."""
        with autocast(images, self.recipe):
            levels = self.trunk(images)
            features = self.reweighting({task: leave(levels) for task, leave in self.heads.items()})
            return {task: self.predict[task](own).float() for task, own in features.items()}


def prompted(weights: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Weights of timm's trunk by the names of the trunk with prompts; the class token, and the norm behind all, have no place.

    Example:
        >>> import torch
        >>> list(prompted({"blocks.5.attn.qkv.weight": torch.zeros(1), "cls_token": torch.zeros(1)}, 6))
        ['levels.2.blocks.1.attention.qkv.weight']
    """
    parts = {"norm1": "norm", "attn.qkv": "attention.qkv", "attn.proj": "attention.out"}
    parts |= {"norm2": "mlp.0", "mlp.fc1": "mlp.1", "mlp.fc2": "mlp.3"}
    made = {}
    for name, value in weights.items():
        if name.startswith("patch_embed.proj."):
            made[name.replace("patch_embed.proj", "embed")] = value
        elif name == "pos_embed":
            made["positions"] = value[:, 1:]
        elif name.startswith("blocks."):
            _, place, own = name.split(".", 2)
            module, _, kind = own.rpartition(".")
            level, block = divmod(int(place), depth // LEVELS)
            made[f"levels.{level}.blocks.{block}.{parts[module]}.{kind}"] = value
    return made
