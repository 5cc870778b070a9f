"""The augmentation of MTI-Net, ASTMT and MTLoRA: turn, zoom and flip on a canvas of fixed size, and resize to one size."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.dense.datasets.kinds import UNKNOWN
from experiments.dense.transforms.colour import IMAGENET, normalise
from experiments.dense.transforms.geometry import Kinds, Maps, flip, resize, size_of
from experiments.dense.transforms.invpt import Normalisation


@dataclass(frozen=True)
class FixedResize:
    """What is done to images that rows are measured on: resized to one size, whatever their shape, and normalised.

    Attributes:
        kinds: Of the targets.
        size: Height and width that come out.
        normalisation: Mean and deviation of the channels.
        need_foreground: As of `PadOnly`.
    """

    kinds: Kinds
    size: tuple[int, int]
    normalisation: Normalisation = IMAGENET
    need_foreground: tuple[str, ...] = ()

    def __call__(self, sample: Maps, chance: random.Random) -> dict[str, Tensor]:
        """The sample as a model is given it."""
        return self.finish(sample)

    def finish(self, sample: Maps) -> dict[str, Tensor]:
        """Resize, normals to unit length again, normalise, and call a target without foreground unknown."""
        maps = resize(sample, self.kinds, self.size, picture="bicubic")
        for task, kind in self.kinds.items():
            if kind == "normals" and task in maps:
                maps[task] = F.normalize(maps[task], dim=0)
        for task in self.need_foreground:
            if task in maps and not bool(((maps[task] != 0) & (maps[task] != 255)).any()):
                maps[task] = torch.full_like(maps[task], 255)
        return {**maps, "image": normalise(maps["image"], *self.normalisation)}


@dataclass(frozen=True)
class TurnZoomFlip(FixedResize):
    """What is done to images that rows train on: mirrored half of the time, turned and zoomed about their middle, resized.

    Attributes:
        angle: Most degrees to either side.
        zooms: Least and greatest zoom, drawn evenly; or, of three and more, one of these.
    """

    angle: float = 20.0
    zooms: tuple[float, ...] = (0.75, 1.25)

    def __call__(self, sample: Maps, chance: random.Random) -> dict[str, Tensor]:
        """The sample as a model is given it, changed by chance."""
        maps = flip(sample, self.kinds) if chance.random() < 0.5 else dict(sample)
        angle = chance.uniform(-self.angle, self.angle)
        zoom = chance.uniform(*self.zooms) if len(self.zooms) == 2 else chance.choice(self.zooms)
        return self.finish(turn(maps, self.kinds, angle, zoom))


def turn(maps: Maps, kinds: Kinds, degrees: float, zoom: float) -> dict[str, Tensor]:
    """Turn every map counter-clockwise and enlarge it about its middle, on a canvas that keeps its size.

    Depth is divided by the zoom; normals are turned with the picture (x right, y down). The picture is black and targets are
    unknown where nothing comes from.
    """
    if degrees == 0 and zoom == 1:
        return dict(maps)
    height, width = size_of(maps)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Where each pixel comes from, in coordinates that run from -1 to 1 along each side.
    back = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]) / zoom
    grid = F.affine_grid(back[None], [1, 1, height, width], align_corners=False)
    turned = {}
    for name, each in maps.items():
        planes = (each if each.ndim == 3 else each[None])[None].float()
        if name not in kinds:
            turned[name] = F.grid_sample(planes, grid, mode="bicubic", align_corners=False)[0].clamp_(0, 255)
            continue
        unknown = UNKNOWN[kinds[name]]
        taken = F.grid_sample(planes, grid, mode="nearest", align_corners=False)[0]
        inside = (grid.abs() < 1).all(-1)
        taken = torch.where(inside, taken, unknown)
        if kinds[name] == "depth":
            taken = taken / zoom
        elif kinds[name] == "normals":
            x, y, z = taken
            taken = torch.stack([cos * x + sin * y, cos * y - sin * x, z])
        turned[name] = taken.reshape(each.shape).to(each.dtype)
    return turned
