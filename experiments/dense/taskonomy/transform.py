"""From stored Taskonomy maps to what a model is given: made smaller without holes leaking, encoded, mirrored."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.dense.datasets.extras import imported
from experiments.dense.taskonomy.domains import DOMAINS, Domain, bytes_centred
from experiments.dense.transforms.colour import HALF, normalise
from experiments.dense.transforms.geometry import flip
from experiments.dense.transforms.invpt import Normalisation


@dataclass(frozen=True)
class EncodeThenResize:
    """The way of the task bank, and a sound one: encode, then make smaller by means over known pixels alone.

    Region numbers are taken from the nearest pixel. A pixel that less than half of its surroundings say something about is
    unknown. The x of normals changes its sign when mirrored.

    Attributes:
        size: Height and width that come out.
        mirror: Whether half of the samples are mirrored.
        normalisation: Mean and deviation of the picture's channels.
    """

    size: tuple[int, int] = (256, 256)
    mirror: bool = False
    normalisation: Normalisation = HALF

    def __call__(self, sample: Mapping[str, Tensor], chance: random.Random) -> dict[str, Tensor]:
        """The sample as a model is given it."""
        maps = {name: self._made(name, each) for name, each in sample.items()}
        if self.mirror and chance.random() < 0.5:
            maps = flip(maps, {})
            if "normal" in maps:
                maps["normal"] = torch.cat([-maps["normal"][:1], maps["normal"][1:]])
        return maps

    def _made(self, name: str, stored: Tensor) -> Tensor:
        if name == "image":
            return normalise(smaller(stored.float(), self.size), *self.normalisation)
        domain = DOMAINS[name]
        encoded = domain.encode(stored)
        if domain.numbers_regions:
            return F.interpolate(encoded[None], self.size, mode="nearest-exact")[0]
        return blurred(smaller(encoded, self.size), domain.blur)


@dataclass(frozen=True)
class ResizeThenEncode:
    """The way of the paper's author's code, quirks included, to meet numbers that were made with it.

    Every stored map, region numbers and holes too, is made smaller bilinearly and rounded before it is encoded; reshading keeps
    three channels; training samples are moved by 0 or 1 pixel along each side, with zeros where nothing comes from; mirroring
    leaves normals as they are.

    Attributes:
        size: Height and width that come out.
        train: Whether samples are moved and mirrored.
        normalisation: Mean and deviation of the picture's channels.
    """

    size: tuple[int, int] = (256, 256)
    train: bool = False
    normalisation: Normalisation = HALF

    def __call__(self, sample: Mapping[str, Tensor], chance: random.Random) -> dict[str, Tensor]:
        """The sample as a model is given it."""
        maps = {name: smaller(each.float(), self.size).round() for name, each in sample.items()}
        if self.train:
            down, right = chance.randint(0, 1), chance.randint(0, 1)
            maps = {name: F.pad(each[:, down:, right:], (0, right, 0, down)) for name, each in maps.items()}
            if chance.random() < 0.5:
                maps = flip(maps, {})
        return {name: self._made(name, each) for name, each in maps.items()}

    def _made(self, name: str, small: Tensor) -> Tensor:
        if name == "image":
            return normalise(small, *self.normalisation)
        if name == "reshading":
            return bytes_centred(small)
        domain = DOMAINS[name]
        return blurred(domain.encode(small), domain.blur)


def smaller(values: Tensor, size: tuple[int, int]) -> Tensor:
    """A map `(c, h, w)` at another size: each pixel is the mean of what is known around it, NaN where that is too little.

    >>> smaller(torch.tensor([[[1.0, 3.0], [1.0, 3.0]]]), (1, 1))
    tensor([[[2.]]])
    """
    if tuple(values.shape[-2:]) == size:
        return values
    known = values.isfinite()
    if bool(known.all()):
        return _averaged(values, size)
    share = _averaged(known.float(), size)
    total = _averaged(torch.where(known, values, 0.0), size)
    return torch.where(share >= 0.5, total / share, torch.nan)


def _averaged(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def blurred(values: Tensor, deviation: float) -> Tensor:
    """A map `(c, h, w)` after a Gaussian blur, of known pixels alone; what was unknown stays so."""
    if not deviation:
        return values
    ndimage = imported("scipy.ndimage", "Blurring Taskonomy's occlusion edges")
    known = values.isfinite().numpy()
    total = np.stack([ndimage.gaussian_filter(plane, deviation) for plane in np.where(known, values.numpy(), 0)])
    if not known.all():
        share = np.stack([ndimage.gaussian_filter(plane, deviation) for plane in known.astype(np.float32)])
        total = np.where(known, total / np.maximum(share, 1e-6), np.nan)
    return torch.from_numpy(total.astype(np.float32))


def channels_of(domain: Domain, protocol: str) -> int:
    """Of the target, which has three for reshading in the way of `ResizeThenEncode`."""
    return 3 if protocol == "sel" and domain.name == "reshading" else domain.channels
