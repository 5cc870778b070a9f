"""The augmentation of MTAN: one of three zooms into a random part, and flips, at the size the images have."""

from __future__ import annotations

import random
from dataclasses import dataclass

from torch import Tensor

from experiments.dense.transforms.colour import IMAGENET, normalise
from experiments.dense.transforms.geometry import Kinds, Maps, crop, draw_box, flip, resize, size_of
from experiments.dense.transforms.invpt import Normalisation


@dataclass(frozen=True)
class AsStored:
    """What is done to images that rows are measured on: normalised.

    Attributes:
        kinds: Of the targets.
        normalisation: Mean and deviation of the channels.
    """

    kinds: Kinds
    normalisation: Normalisation = IMAGENET

    def __call__(self, sample: Maps, chance: random.Random) -> dict[str, Tensor]:
        """The sample as a model is given it."""
        return {**sample, "image": normalise(sample["image"], *self.normalisation)}


@dataclass(frozen=True)
class ZoomFlip(AsStored):
    """What is done to images that rows train on.

    A part, 1, 1.2 or 1.5 times smaller, is enlarged to the whole, and mirrored half of the time.

    Attributes:
        zooms: One of these each time; depth is divided by it.
    """

    zooms: tuple[float, ...] = (1.0, 1.2, 1.5)

    def __call__(self, sample: Maps, chance: random.Random) -> dict[str, Tensor]:
        """The sample as a model is given it, changed by chance."""
        size, zoom = size_of(sample), chance.choice(self.zooms)
        part = crop(sample, draw_box(size, (int(size[0] / zoom), int(size[1] / zoom)), chance))
        maps = {
            name: each / zoom if self.kinds.get(name) == "depth" else each
            for name, each in resize(part, self.kinds, size).items()
        }
        if chance.random() < 0.5:
            maps = flip(maps, self.kinds)
        return super().__call__(maps, chance)
