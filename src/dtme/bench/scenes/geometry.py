"""Scenes as tensors, and rays cast into them.

Pixels are computed by sums, products, quotients, square roots and comparisons only, one operation to a kernel. IEEE
arithmetic rounds each of these exactly, so the bytes depend on no batch, number of threads or vector width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dtme._shapes import Bool, Float, Int
from dtme.bench.scenes.furniture import Ball, Box, Label, Vector
from dtme.bench.scenes.layout import CEILING, FLOOR, FRAMES, WALLS, Layout
from dtme.bench.scenes.materials import Material

_CHUNK = 1 << 16  # (box, pixel) pairs worked on at once: the intermediate tensors stay in the processor's cache
_PARALLEL = 1e-6  # no component of a ray is smaller, which keeps rays along an axis finite
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


@dataclass(frozen=True)
class Hits:
    """What the rays met first.

    Attributes:
        depth: Ray parameter.
        face: A number that two pixels share exactly if they show the same flat face, or the same ball.
        normal: Unit normal in the room's coordinates, towards the origin of the rays.
        point: Where, in the room's coordinates.
        local: Where, in the solid's own frame, seen from its centre; 0 along the normal of a flat face.
        attributes: Of the solid met, as in `Geometry`.
    """

    depth: Float[Tensor, "b p"]
    face: Int[Tensor, "b p"]
    normal: Float[Tensor, "b 3 p"]
    point: Float[Tensor, "b 3 p"]
    local: Float[Tensor, "b 3 p"]
    attributes: Float[Tensor, "b 21 p"]


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


def trace(scene: Geometry, origin: Float[Tensor, "b 3"], direction: Float[Tensor, "b 3 p"]) -> Hits:
    """The first solid along each ray that starts at `origin`, a point in the room outside all solids."""
    room = scene.attributes.shape[-1] - 3  # the number of the floor; walls and ceiling follow
    depth, wall_axis = _leave_room(scene.room, origin, direction)
    solid = torch.where(wall_axis == 1, torch.where(direction[:, 1] < 0, room, room + 2), room + 1)
    first = 0
    for near, far in _spans(scene.frames, scene.balls, origin, direction):
        near.clamp_(min=0)  # a solid behind is left before 0, and so counts as missed
        nearest, index = near.masked_fill_(far <= near, math.inf).min(dim=1)
        closer = nearest < depth
        depth, solid = torch.where(closer, nearest, depth), torch.where(closer, index + first, solid)
        first += near.shape[1]
    return _hits(scene, origin, direction, depth, solid, wall_axis)


def visible(scene: Geometry, light: Float[Tensor, "b 3"], point: Float[Tensor, "b 3 p"]) -> Bool[Tensor, "b p"]:
    """Whether nothing that throws a shadow lies between a light and the points."""
    balls = replace(scene.balls, radius=scene.balls.radius * scene.balls.casts)
    direction = point - light[..., None]
    longest = torch.zeros_like(direction[:, 0])
    for near, far in _spans([frame.casting() for frame in scene.frames], balls, light, direction):
        inside = far.clamp_(max=1).sub_(near.clamp_(min=0))  # share of the way from the light to the point
        torch.maximum(longest, inside.amax(dim=1), out=longest)
    return longest == 0


def dot(a: Float[Tensor, "... 3 _"], b: Float[Tensor, "... 3 _"]) -> Float[Tensor, "..."]:
    """Scalar products over the last dimension but one, summed in a fixed order."""
    (ax, ay, az), (bx, by, bz) = a.unbind(-2), b.unbind(-2)
    return ax * bx + ay * by + az * bz


def _spans(
    frames: Sequence[Frame], balls: Balls, origin: Float[Tensor, "b 3"], direction: Float[Tensor, "b 3 p"]
) -> Iterator[tuple[Float[Tensor, "b n p"], Float[Tensor, "b n p"]]]:
    """Chunk by chunk of solids: the ray parameters of entry and exit, entry < exit only where the solid is met."""
    at_once = max(1, _CHUNK // direction[:, 0].numel())
    for frame in frames:
        inverse = 1 / _no_zero(_turn(direction, frame.cos, frame.sin))
        start = _turn(origin[..., None], frame.cos, frame.sin).transpose(1, 2)
        for centre, half in zip((frame.centre - start).split(at_once, 1), frame.half.split(at_once, 1), strict=True):
            near, far = _slab(centre[..., 0], half[..., 0], inverse[:, 0])
            for axis in (1, 2):
                enter, leave = _slab(centre[..., axis], half[..., axis], inverse[:, axis])
                torch.maximum(near, enter, out=near)
                torch.minimum(far, leave, out=far)
            yield near, far
    for centre, radius in zip(balls.centre.split(at_once, 1), balls.radius.split(at_once, 1), strict=True):
        yield _ball(centre - origin[:, None], radius, direction)


def _slab(
    centre: Float[Tensor, "b n"], half: Float[Tensor, "b n"], inverse: Float[Tensor, "b p"]
) -> tuple[Float[Tensor, "b n p"], Float[Tensor, "b n p"]]:
    """Ray parameters between two parallel planes: (centre ± half) / direction, in order."""
    middle = centre[..., None] * inverse[:, None]
    reach = half[..., None] * inverse[:, None].abs()
    return middle - reach, middle.add_(reach)


def _ball(
    to: Float[Tensor, "b m 3"], radius: Float[Tensor, "b m"], direction: Float[Tensor, "b 3 p"]
) -> tuple[Float[Tensor, "b m p"], Float[Tensor, "b m p"]]:
    """Ray parameters of |t direction - to| = radius; entry equals exit where there is none."""
    along = dot(to[..., None], direction[:, None])
    square = dot(direction, direction)[:, None]
    beyond = dot(to[..., None], to[..., None]) - (radius * radius)[..., None]
    root = (along * along - square * beyond).clamp_(min=0).sqrt_()
    return (along - root) / square, (along + root) / square


def _leave_room(
    room: Float[Tensor, "b 3"], origin: Float[Tensor, "b 3"], direction: Float[Tensor, "b 3 p"]
) -> tuple[Float[Tensor, "b p"], Int[Tensor, "b p"]]:
    """Where rays from inside meet floor, wall or ceiling: ray parameter, and axis of the surface's normal."""
    direction = _no_zero(direction)
    bound = torch.where(direction > 0, room[..., None], 0.0)
    x, y, z = ((bound - origin[..., None]) / direction).unbind(1)
    depth = torch.minimum(torch.minimum(x, y), z)
    return depth, torch.where(depth == x, 0, torch.where(depth == y, 1, 2))


def _hits(
    scene: Geometry,
    origin: Float[Tensor, "b 3"],
    direction: Float[Tensor, "b 3 p"],
    depth: Float[Tensor, "b p"],
    solid: Int[Tensor, "b p"],
    wall_axis: Int[Tensor, "b p"],
) -> Hits:
    """Normals, places and attributes of the solids that were hit."""
    solids, rows = scene.attributes.shape[2], scene.attributes.shape[1]
    is_wall = solid >= solids - 3
    is_ball = (solid >= solids - 3 - scene.balls.radius.shape[1]) & ~is_wall
    attributes = scene.attributes.gather(2, solid[:, None].expand(-1, rows, -1))
    centre, half, cos, sin = attributes[:, 0:3], attributes[:, 3:6], attributes[:, 6], attributes[:, 7]
    point = origin[..., None] + direction * depth[:, None]
    local = _turn(point, cos, sin) - centre
    ray = _no_zero(_turn(direction, cos, sin))
    entry = (centre - _turn(origin[..., None], cos, sin)) / ray - half / ray.abs()
    x, y, z = entry.unbind(1)
    last = torch.maximum(torch.maximum(x, y), z)
    axis = torch.where(is_wall, wall_axis, torch.where(last == x, 0, torch.where(last == y, 1, 2)))
    across = torch.arange(3)[:, None] == axis[:, None]
    flat = torch.where(across, -ray.sign(), 0.0)
    round_ = local / dot(local, local).sqrt()[:, None]
    normal = torch.where(is_ball[:, None], round_, flat)
    return Hits(
        depth=depth,
        face=solid * 6 + torch.where(is_ball, 0, axis * 2 + (flat < 0).any(dim=1)),
        normal=_turn(normal, cos, -sin),
        point=point,
        local=torch.where(across & ~is_ball[:, None], 0.0, local),
        attributes=attributes,
    )


def _turn(
    v: Float[Tensor, "b 3 _"], cos: Float[Tensor, "b ..."], sin: Float[Tensor, "b ..."]
) -> Float[Tensor, "b 3 _"]:
    """Vectors of the room in a frame of the given yaw; with -sin, the way back."""
    x, y, z = v.unbind(1)
    if cos.dim() == 1:
        cos, sin = cos[:, None], sin[:, None]
    x, z = cos * x - sin * z, sin * x + cos * z
    return torch.stack((x, y.expand_as(x), z), dim=1)


def _no_zero(direction: Float[Tensor, "b 3 p"]) -> Float[Tensor, "b 3 p"]:
    return torch.where(direction.abs() < _PARALLEL, _PARALLEL, direction)


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
