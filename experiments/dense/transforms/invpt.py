"""The augmentation of ATRC, InvPT and TaskPrompter: scale, crop, flip, colours, and padding instead of resizing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from experiments.dense.transforms.colour import IMAGENET, distort, normalise
from experiments.dense.transforms.geometry import (
    Kinds,
    Maps,
    crop,
    draw_box,
    draw_mixed_box,
    flip,
    pad,
    scale,
    size_of,
)

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class PadOnly:
    """What is done to images that rows are measured on: normalised, and padded to one size.

    Attributes:
        kinds: Of the targets.
        size: Height and width that come out.
        normalisation: Mean and deviation of the channels.
        need_foreground: Tasks whose target is unknown altogether where no pixel of it is anything but background, as of the
            parts of people in a picture, or in a crop, without people.
    """

    kinds: Kinds
    size: tuple[int, int]
    normalisation: Normalisation = IMAGENET
    need_foreground: tuple[str, ...] = ()

    def __call__(self, sample: Maps, chance: random.Random) -> dict[str, Tensor]:
        """The sample as a model is given it."""
        return self.finish(sample)

    def finish(self, sample: Maps) -> dict[str, Tensor]:
        """Normalise, pad, and call a target without foreground unknown."""
        maps = {**sample, "image": normalise(sample["image"], *self.normalisation)}
        for task in self.need_foreground:
            if task in maps and not bool(((maps[task] != 0) & (maps[task] != 255)).any()):
                maps[task] = torch.full_like(maps[task], 255)
        return pad(maps, self.kinds, self.size)


@dataclass(frozen=True)
class ScaleCropFlip(PadOnly):
    """What is done to images that rows train on.

    One factor from `scales` for all maps; a crop of at most `size`; mirrored half of the time; colours changed; normalised; then
    padded.

    Attributes:
        scales: Least and greatest factor.
        crop_by: `"semseg"`: a crop is drawn anew, up to ten times, while one class has three quarters of it or more; `"chance"`:
            the first one is taken, which is what drawing anew by the edges comes to, as some readers of the field do.
    """

    scales: tuple[float, float] = (0.5, 2.0)
    crop_by: Literal["semseg", "chance"] = "semseg"

    def __call__(self, sample: Maps, chance: random.Random) -> dict[str, Tensor]:
        """The sample as a model is given it, changed by chance."""
        maps = scale(sample, self.kinds, chance.uniform(*self.scales))
        if self.crop_by == "semseg" and "semseg" in maps:
            box = draw_mixed_box(maps["semseg"], self.size, chance)
        else:
            box = draw_box(size_of(maps), self.size, chance)
        maps = crop(maps, box)
        if chance.random() < 0.5:
            maps = flip(maps, self.kinds)
        return self.finish({**maps, "image": distort(maps["image"], chance)})
