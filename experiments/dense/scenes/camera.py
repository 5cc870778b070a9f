"""A pinhole camera at eye height, looking into the room."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dtme._shapes import Float
from experiments.dense.scenes.random_draws import Dice
from experiments.dense.scenes.solids import Vector


@dataclass(frozen=True)
class Camera:
    """Where the camera stands and where it looks.

    Camera frame: x to the right, y down, z along the optical axis. Room frame: x to the right, y up, z to the back
    (left-handed, so that a floor plan reads like a map).

    Attributes:
        position: In the room, in metres.
        axes: The camera's x, y and z axes, in the room's frame.
        focal: Focal length in units of the image's width.
    """

    position: Vector
    axes: tuple[Vector, Vector, Vector]
    focal: float

    def sees(self, x: float, z: float, margin: float = 0.0) -> bool:
        """Whether the point (x, z) of the floor plan lies within the horizontal field of view, widened by `margin`."""
        bearing = math.atan2(self.axes[2][0], self.axes[2][2])
        off = math.atan2(x - self.position[0], z - self.position[2]) - bearing
        return abs(off) < math.atan(0.5 / self.focal) + margin


def aim(position: Vector, target: Vector, *, roll: float = 0.0, focal: float = 0.8) -> Camera:
    """A camera at `position` that looks at `target`, turned by `roll` radians about its optical axis.

    Example:
        >>> aim((0.0, 1.5, 0.0), (0.0, 1.5, 2.0)).axes[2]
        (0.0, 0.0, 1.0)
    """
    forward = _unit(*(t - p for p, t in zip(position, target, strict=True)))
    level = _unit(forward[2], 0.0, -forward[0])
    down = _cross(level, forward)
    c, s = math.cos(roll), math.sin(roll)
    right = _mix(c, level, s, down)
    return Camera(position, (right, _mix(-s, level, c, down), forward), focal)


def place(dice: Dice, width: float, length: float) -> Camera:
    """A camera near the front wall of a room of the given size, looking at its middle."""
    position = (width * dice.between(0.15, 0.85), dice.between(1.15, 1.7), dice.between(0.1, 0.6))
    target = (width * dice.between(0.3, 0.7), dice.between(0.55, 1.0), length * dice.between(0.6, 0.9))
    return aim(position, target, roll=dice.between(-0.04, 0.04), focal=dice.between(0.65, 0.95))


def rays(axes: Float[Tensor, "b 3 3"], focal: Float[Tensor, " b"], size: int) -> Float[Tensor, "b 3 p"]:
    """Directions in the room's frame through all pixel centres, row by row.

    Their component along the optical axis is 1, so the ray parameter of a point is its depth.
    """
    step = ((torch.arange(size) + 0.5) / size - 0.5) / focal[:, None]
    x = step[:, None, :].expand(-1, size, -1).flatten(1)[:, None]
    y = step[:, :, None].expand(-1, -1, size).flatten(1)[:, None]
    right, down, forward = axes[..., None].unbind(1)
    return right * x + down * y + forward


def _unit(x: float, y: float, z: float) -> Vector:
    norm = math.sqrt(x * x + y * y + z * z)
    return x / norm, y / norm, z / norm


def _cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _mix(p: float, a: Vector, q: float, b: Vector) -> Vector:
    return p * a[0] + q * b[0], p * a[1] + q * b[1], p * a[2] + q * b[2]
