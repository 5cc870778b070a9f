"""The domains of Taskonomy that its eleven tasks are about: how each is stored, and what a model learns of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Storage = Literal["gray16", "gray", "RGB"]

RGB = "rgb"
DEPTHS = ("depth_euclidean", "depth_zbuffer")
"""Both say where the scan has a hole; no file says it by itself."""

HOLE = 64500
"""Depths from here on are no depths: 65535 is written where nothing was measured."""

SIZE = (512, 512)
LEVELS = 2.0**16


@dataclass(frozen=True)
class Domain:
    """One folder of maps.

    Attributes:
        name: Of the folder and of the task.
        storage: Channels and bits of its PNGs.
        channels: Of the target.
        encode: From stored numbers, float `(c, h, w)`, to what is learned, `(channels, h, w)`.
        needs_scan: Unknown where the scan has a hole, since it was computed from the scan.
        numbers_regions: Its values number regions, so that none between two means anything.
        blur: Deviation, in pixels of the target, of the blur that what is learned goes through.
        aliases: Other names of it in folders and files.
    """

    name: str
    storage: Storage
    channels: int
    encode: Callable[[Tensor], Tensor]
    needs_scan: bool = True
    numbers_regions: bool = False
    blur: float = 0.0
    aliases: tuple[str, ...] = ()


def log_depth(stored: Tensor) -> Tensor:
    """Depth in 1/512 m as `log(1 + d) / log(65536)`, from 0 to 1.

    >>> log_depth(torch.tensor([0.0, 65535.0]))
    tensor([0., 1.])
    """
    return torch.log1p(stored) / math.log(LEVELS)


def centred(stored: Tensor, top: float, *, clip: bool = False) -> Tensor:
    """From -1 at 0 to 1 at `top`.

    >>> centred(torch.tensor([0.0, 50.0, 300.0]), 100.0, clip=True)
    tensor([-1.,  0.,  1.])
    """
    return (stored.clamp(0, top) if clip else stored) / top * 2 - 1


def occlusion(stored: Tensor) -> Tensor:
    """Occlusion edges: -1 to 1 from 0 to 0.00625 of the range, and beyond."""
    return centred(stored, 0.00625 * LEVELS)


def texture(stored: Tensor) -> Tensor:
    """Texture edges: -1 to 1 from 0 to 0.08 of the range, clipped there."""
    return centred(stored, 0.08 * LEVELS, clip=True)


def keypoints_2d(stored: Tensor) -> Tensor:
    """Keypoints of the picture: -1 to 1 from 0 to 0.005 of the range, clipped there."""
    return centred(stored, 0.005 * LEVELS, clip=True)


def keypoints_3d(stored: Tensor) -> Tensor:
    """Keypoints of the scan: -1 to 1 over the whole range."""
    return centred(stored, LEVELS)


def bytes_centred(stored: Tensor) -> Tensor:
    """-1 to 1 from 0 to 255."""
    return centred(stored, 255.0)


def curvature(stored: Tensor) -> Tensor:
    """The two principal curvatures, as deviations from their mean; the third channel of the file is 0."""
    mean = torch.tensor([123.572, 120.1]).reshape(2, 1, 1)
    deviation = torch.tensor([31.922, 21.658]).reshape(2, 1, 1)
    return (stored[:2] - mean) / deviation


def shade(stored: Tensor) -> Tensor:
    """Reshading: -1 to 1 from 0 to 255, of one of the three equal channels of the file."""
    return bytes_centred(stored[:1])


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain("depth_euclidean", "gray16", 1, log_depth, aliases=("mist",)),
        Domain("depth_zbuffer", "gray16", 1, log_depth, aliases=("depth",)),
        Domain("edge_occlusion", "gray16", 1, occlusion, blur=4.0, aliases=("edge",)),
        Domain("edge_texture", "gray16", 1, texture, needs_scan=False, aliases=("edge2d",)),
        Domain("keypoints2d", "gray16", 1, keypoints_2d, needs_scan=False, aliases=("keypoint2d",)),
        Domain("keypoints3d", "gray16", 1, keypoints_3d, aliases=("keypoint",)),
        Domain("normal", "RGB", 3, bytes_centred),
        Domain("principal_curvature", "RGB", 2, curvature, aliases=("curvature",)),
        Domain("reshading", "RGB", 1, shade, aliases=("reshade",)),
        Domain("segment_unsup2d", "gray", 1, bytes_centred, False, True, aliases=("segment2d", "segmentunsup2d")),
        Domain("segment_unsup25d", "gray", 1, bytes_centred, True, True, aliases=("segment25d", "segmentunsup25d")),
    )
}
"""In the order of the paper's tables. Names of old downloads are aliases."""

NAME_OF = {name: domain.name for domain in DOMAINS.values() for name in (domain.name, *domain.aliases)} | {RGB: RGB}
"""The domain that a name in a folder or a file means."""
