"""Rays cast into scenes.

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
from experiments.dense.scenes.geometry import Balls, Frame, Geometry

_CHUNK = 1 << 16  # (box, pixel) pairs worked on at once: the intermediate tensors stay in the processor's cache
_PARALLEL = 1e-6  # no component of a ray is smaller, which keeps rays along an axis finite


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
