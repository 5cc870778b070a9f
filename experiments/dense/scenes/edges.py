"""Edges: where one thing ends, or a surface breaks off or folds."""

from __future__ import annotations

import torch
from torch import Tensor

from dtme._shapes import Bool, Float, Int

_GAP = 0.04  # metres off the other pixel's tangent plane from which on a surface has broken off
_FOLD = 0.85  # cosine of the angle between normals below which a surface folds: about 32 degrees


def edges(
    face: Int[Tensor, "b h w"],
    instance: Int[Tensor, "b h w"],
    depth: Float[Tensor, "b h w"],
    normal: Float[Tensor, "b 3 h w"],
    point: Float[Tensor, "b 3 h w"],
) -> Bool[Tensor, "b h w"]:
    """Marks boundaries with lines about one pixel thick.

    Two pixels side by side are parted if they show different faces and these belong to different instances, or lie
    apart, or meet at an angle. Of the two, the nearer one is marked: an outline belongs to what it outlines.

    Args:
        face: A number per flat face or ball.
        instance: A number per thing.
        depth: Along the optical axis, in metres.
        normal: Unit normals, in any frame.
        point: Where the face is, in metres, in the same frame.
    """
    marked = torch.zeros_like(face, dtype=torch.bool)
    for dim in (-1, -2):
        end = face.shape[dim] - 1
        (f, g), (i, j), (n, m), (p, q) = (
            (x.narrow(dim, 0, end), x.narrow(dim, 1, end)) for x in (face, instance, normal, point)
        )
        step = q - p
        apart = torch.maximum(_dot(n, step).abs(), _dot(m, step).abs()) > _GAP
        parted = (f != g) & ((i != j) | apart | (_dot(n, m) < _FOLD))
        near = depth.narrow(dim, 0, end) <= depth.narrow(dim, 1, end)
        marked.narrow(dim, 0, end).logical_or_(parted & near)
        marked.narrow(dim, 1, end).logical_or_(parted & ~near)
    return marked


def _dot(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]
