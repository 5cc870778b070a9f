"""Scenes as tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtme._shapes import Float
from experiments.dense.scenes.layout import CEILING, FLOOR, FRAMES, WALLS, Layout
from experiments.dense.scenes.materials import Material
from experiments.dense.scenes.solids import Ball, Box, Label, Vector

_NOWHERE = (0.0, -100.0, 0.0)  # far under the floor: the solids that only fill up a batch


@dataclass(frozen=True)
class Frame:
    """The boxes that stand in one direction, in coordinates in which they are axis-aligned.

    Attributes:
        cos: Cosine of the direction's yaw.
        sin: Sine of it.
        centre: In metres.
        half: Half extents, in metres.
        casts: 1 for a box that throws a shadow, else 0; the ones come first.
    """

    cos: Float[Tensor, " b"]
    sin: Float[Tensor, " b"]
    centre: Float[Tensor, "b n 3"]
    half: Float[Tensor, "b n 3"]
    casts: Float[Tensor, "b n"]

    def casting(self) -> Frame:
        """The boxes that throw a shadow; where a scene has fewer of them, boxes without extent."""
        most = max(1, int(self.casts.sum(dim=1).amax()))
        casts = self.casts[:, :most]
        return Frame(self.cos, self.sin, self.centre[:, :most], self.half[:, :most] * casts[..., None], casts)


@dataclass(frozen=True)
class Balls:
    """The balls, in the room's coordinates."""

    centre: Float[Tensor, "b m 3"]
    radius: Float[Tensor, "b m"]
    casts: Float[Tensor, "b m"]


@dataclass(frozen=True)
class Geometry:
    """A batch of scenes.

    A solid's number counts the boxes frame by frame, then the balls, then floor, walls and ceiling.

    Attributes:
        room: Extent along x, y and z; a corner is the origin.
        frames: The boxes, by direction.
        balls: The balls.
        attributes: Per solid: 0-2 centre in its frame, 3-5 half extents, 6 cosine, 7 sine, 8 label, 9 instance,
            10 pattern, 11-13 first colour, 14-16 second colour, 17-19 scale, 20 glow.
    """

    room: Float[Tensor, "b 3"]
    frames: tuple[Frame, ...]
    balls: Balls
    attributes: Float[Tensor, "b 21 s"]


def geometry(layouts: Sequence[Layout]) -> Geometry:
    """The layouts as one batch, filled up to the largest number of boxes and balls."""
    boxes = [_filled([_boxes(layout, frame) for layout in layouts]) for frame in range(FRAMES)]
    balls = _filled([_balls(layout) for layout in layouts])
    surfaces = torch.tensor([_surfaces(layout) for layout in layouts])
    return Geometry(
        room=torch.tensor([layout.room for layout in layouts]),
        frames=tuple(
            Frame(
                cos=torch.tensor([math.cos(layout.yaws[frame]) for layout in layouts]),
                sin=torch.tensor([math.sin(layout.yaws[frame]) for layout in layouts]),
                centre=rows[..., 0:3],
                half=rows[..., 3:6],
                casts=rows[..., 21],
            )
            for frame, rows in enumerate(boxes)
        ),
        balls=Balls(centre=balls[..., 0:3], radius=balls[..., 3], casts=balls[..., 21]),
        attributes=torch.cat([*boxes, balls, surfaces], dim=1)[..., :21].transpose(1, 2).contiguous(),
    )


def _boxes(layout: Layout, frame: int) -> list[list[float]]:
    """Rows of the boxes of one frame: the attributes, and whether it throws a shadow."""
    yaw = layout.yaws[frame]
    cos, sin = math.cos(yaw), math.sin(yaw)
    rows = []
    for solid in layout.solids:
        if solid.frame == frame and isinstance(box := solid.shape, Box):
            x, y, z = box.centre
            centre = (cos * x - sin * z, y, sin * x + cos * z)
            rows.append(_row(centre, box.half, (cos, sin), solid.label, solid.instance, box.material, box.casts))
    return sorted(rows, key=lambda row: -row[-1])


def _balls(layout: Layout) -> list[list[float]]:
    """Rows of the balls, which have no direction."""
    return [
        _row(
            ball.centre,
            (ball.radius, ball.radius, ball.radius),
            (1.0, 0.0),
            solid.label,
            solid.instance,
            ball.material,
            ball.casts,
        )
        for solid in layout.solids
        if isinstance(ball := solid.shape, Ball)
    ]


def _surfaces(layout: Layout) -> list[list[float]]:
    """Rows of floor, walls and ceiling, whose local coordinates are the room's."""
    kinds = ((Label.FLOOR, FLOOR), (Label.WALL, WALLS), (Label.CEILING, CEILING))
    return [
        _row((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.0), label, instance, material)
        for (label, instance), material in zip(kinds, layout.surfaces, strict=True)
    ]


def _row(
    centre: Vector,
    half: Vector,
    turn: tuple[float, float],
    label: Label,
    instance: int,
    material: Material,
    casts: bool = True,
) -> list[float]:
    look = (float(material.pattern), *material.first, *material.second, *material.scale, material.glow)
    return [*centre, *half, *turn, float(label), float(instance), *look, float(casts)]


def _filled(rows: list[list[list[float]]]) -> Float[Tensor, "b n 22"]:
    """One tensor of rows, filled up with specks that no ray meets."""
    most = max(1, *map(len, rows))
    speck = [*_NOWHERE, 0.0, 0.0, 0.0, 1.0, *[0.0] * 15]
    return torch.tensor([scene + [speck] * (most - len(scene)) for scene in rows]).reshape(len(rows), most, 22)
