"""Changes of geometry, one for all maps of a sample, each kind of map in its own way.

A sample maps names to tensors `(..., h, w)`; `kinds` has the kind of every target, and what it does not name is the picture.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.dense.datasets.kinds import UNKNOWN, Kind

Maps = Mapping[str, Tensor]
Kinds = Mapping[str, Kind]
Box = tuple[int, int, int, int]
"""Top, left, height, width."""


def scale(maps: Maps, kinds: Kinds, factor: float) -> dict[str, Tensor]:
    """Enlarge every map by `factor`, to `int(h * factor)` by `int(w * factor)`.

    The picture is interpolated bilinearly; targets get their nearest pixel. What is twice as large in a picture is half as far
    away, so depth is divided by the factor.

    >>> scale({"depth": torch.tensor([[3.0, 6.0]])}, {"depth": "depth"}, 1.5)["depth"]
    tensor([[2., 2., 4.]])
    """
    height, width = size_of(maps)
    scaled = resize(maps, kinds, (int(height * factor), int(width * factor)))
    return {name: each / factor if kinds.get(name) == "depth" else each for name, each in scaled.items()}


def resize(maps: Maps, kinds: Kinds, size: tuple[int, int], picture: str = "bilinear") -> dict[str, Tensor]:
    """Every map at another size: the picture in the mode given, targets by their nearest pixel; depth stays as it is."""
    resized = {}
    for name, each in maps.items():
        if name in kinds:
            wide = each if each.dtype in (torch.uint8, torch.float32) else each.double()  # what interpolation knows
            nearest = F.interpolate(_planes(wide), size, mode="nearest")
            resized[name] = nearest.reshape(*each.shape[:-2], *size).to(each.dtype)
        else:
            smooth = F.interpolate(each[None].float(), size, mode=picture, align_corners=False)[0]
            resized[name] = smooth.clamp_(0, 255)
    return resized


def crop(maps: Maps, box: Box) -> dict[str, Tensor]:
    """The part of every map in the box."""
    top, left, height, width = box
    return {name: each[..., top : top + height, left : left + width] for name, each in maps.items()}


def draw_box(size: tuple[int, int], wanted: tuple[int, int], chance: random.Random) -> Box:
    """A box of the wanted size, anywhere inside; along a side that is shorter than wanted, all of it."""
    height, width = min(size[0], wanted[0]), min(size[1], wanted[1])
    return chance.randint(0, size[0] - height), chance.randint(0, size[1] - width), height, width


def draw_mixed_box(
    labels: Tensor, wanted: tuple[int, int], chance: random.Random, *, most: float = 0.75, redraws: int = 10
) -> Box:
    """A box in which no class has three quarters or more of the labelled pixels; after ten redraws in vain the last one.

    Args:
        labels: Classes, `(h, w)`, 255 for unknown.
        wanted: Height and width.
        chance: Draws the boxes.
        most: Share of one class from which on a box is drawn anew.
        redraws: How often at most.
    """
    box = draw_box((labels.shape[0], labels.shape[1]), wanted, chance)
    for _ in range(redraws):
        top, left, height, width = box
        counts = torch.bincount(labels[top : top + height, left : left + width].flatten().int(), minlength=256)[:255]
        if int((counts > 0).sum()) > 1 and int(counts.max()) < most * int(counts.sum()):
            break
        box = draw_box((labels.shape[0], labels.shape[1]), wanted, chance)
    return box


def flip(maps: Maps, kinds: Kinds) -> dict[str, Tensor]:
    """Mirror every map, right to left; what pointed right points left, so the x of normals changes its sign.

    >>> flip({"normals": torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)}, {"normals": "normals"})["normals"].flatten()
    tensor([-1.,  0.,  0.])
    """
    flipped = {}
    for name, each in maps.items():
        mirrored = each.flip(-1)
        if kinds.get(name) == "normals":
            mirrored = torch.cat([-mirrored[:1], mirrored[1:]])
        flipped[name] = mirrored + 0.0 if kinds.get(name) == "normals" else mirrored  # no -0
    return flipped


def pad(maps: Maps, kinds: Kinds, size: tuple[int, int]) -> dict[str, Tensor]:
    """Put every map into the middle of a larger one: the picture among zeros, targets among unknown pixels.

    A picture that was normalised before thus stands in its mean colour. Of an odd rest the larger part goes below and right.

    Raises:
        ValueError: A map is larger than `size`, which padding cannot mend.
    """
    height, width = size_of(maps)
    if height > size[0] or width > size[1]:
        raise ValueError(
            f"maps of {height} x {width} do not fit into size={size}: padding never shrinks. "
            "Give the copy of the data set that is meant, or another size."
        )
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    frame = (left, size[1] - width - left, top, size[0] - height - top)
    return {
        name: F.pad(each, frame, value=UNKNOWN[kinds[name]] if name in kinds else 0.0) for name, each in maps.items()
    }


def size_of(maps: Maps) -> tuple[int, int]:
    """Height and width that all maps share."""
    height, width = next(iter(maps.values())).shape[-2:]
    return height, width


def _planes(each: Tensor) -> Tensor:
    """A map as a batch of one, `(1, channels, h, w)`."""
    return each[None] if each.ndim == 3 else each[None, None]
