"""Scenes with their ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dtme._shapes import Bool, Float, Shaped
from experiments.dense.scenes.camera import rays
from experiments.dense.scenes.edges import edges
from experiments.dense.scenes.furnishing import furnish
from experiments.dense.scenes.geometry import geometry
from experiments.dense.scenes.layout import FRAMES, Layout
from experiments.dense.scenes.shading import expose, shade
from experiments.dense.scenes.tracing import dot, trace

VERSION = 1  # raised whenever the bytes of a scene change
_PIXELS = 1 << 14  # rendered at once, 4 scenes of 64 x 64; more leave the processor's cache and take longer


@dataclass(frozen=True)
class Scenes:
    """Pictures of rooms and what is true in them, exactly.

    Camera frame: x to the right, y down, z along the optical axis; the centre of the pixel in column i looks along
    x / z = ((i + 0.5) / w - 0.5) / focal, and likewise down the rows.

    Attributes:
        rgb: 8 bits a channel.
        semseg: Class, an index into `Label`.
        depth: Along the optical axis, in metres.
        normals: Unit normals in the camera frame, towards the camera.
        edges: Ends of things, breaks and folds of surfaces.
        focal: Focal length in units of the picture's width.
    """

    rgb: Shaped[Tensor, "n 3 h w"]
    semseg: Shaped[Tensor, "n h w"]
    depth: Float[Tensor, "n h w"]
    normals: Float[Tensor, "n 3 h w"]
    edges: Bool[Tensor, "n h w"]
    focal: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.rgb)


def render(seed: int, count: int, size: int = 64, *, start: int = 0) -> Scenes:
    """Renders scenes number `start` to `start + count - 1` of a seed.

    A scene is a function of seed and number alone; at another size it is the same room from the same place.

    Args:
        seed: Any whole number.
        count: How many scenes, at least 1.
        size: Height and width in pixels.
        start: Number of the first scene.

    Raises:
        ValueError: If `count` or `size` is not positive.

    Example:
        >>> scenes = render(seed=0, count=2, size=16)
        >>> scenes.rgb.shape, scenes.depth.dtype
        (torch.Size([2, 3, 16, 16]), torch.float32)
    """
    for name, value in (("count", count), ("size", size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; at least 1 is needed")
    layouts = {k: furnish(seed, k) for k in range(start, start + count)}
    order = sorted(layouts, key=lambda k: _boxes_per_frame(layouts[k]))  # scenes of a batch should need little padding
    batch = max(1, _PIXELS // size**2)
    parts = [
        photograph([layouts[k] for k in numbers], size, [(seed, k) for k in numbers])
        for numbers in (order[first : first + batch] for first in range(0, count, batch))
    ]
    place = torch.tensor(order).argsort()
    return Scenes(*(torch.cat([getattr(part, field.name) for part in parts])[place] for field in fields(Scenes)))


def _boxes_per_frame(layout: Layout) -> list[int]:
    """Numbers of solids by frame, those of the walls' frame, which vary most, last."""
    frames = [solid.frame for solid in layout.solids]
    return [frames.count(frame) for frame in reversed(range(FRAMES))]


@torch.no_grad()
def photograph(layouts: Sequence[Layout], size: int, noise: Sequence[tuple[int, int]]) -> Scenes:
    """Renders any layouts in one batch; `noise` holds a pair of numbers per scene that seeds its sensor noise."""
    scene = geometry(layouts)
    axes = torch.tensor([layout.camera.axes for layout in layouts])
    focal = torch.tensor([layout.camera.focal for layout in layouts])
    position = torch.tensor([layout.camera.position for layout in layouts])
    hits = trace(scene, position, rays(axes, focal, size))
    rgb = expose(shade(scene, layouts, hits), layouts, noise)
    normals = torch.stack([dot(axis[..., None], hits.normal) for axis in axes.unbind(1)], dim=1)
    face, instance, depth, normal, point = (
        x.unflatten(-1, (size, size)) for x in (hits.face, hits.attributes[:, 9], hits.depth, hits.normal, hits.point)
    )
    return Scenes(
        rgb=rgb.unflatten(-1, (size, size)),
        semseg=hits.attributes[:, 8].to(torch.uint8).unflatten(-1, (size, size)),
        depth=depth,
        normals=normals.unflatten(-1, (size, size)),
        edges=edges(face, instance.to(torch.int64), depth, normal, point),
        focal=focal,
    )
