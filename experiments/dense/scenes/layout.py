"""What is in a room and where, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.dense.scenes.camera import Camera
from experiments.dense.scenes.materials import Colour, Material
from experiments.dense.scenes.solids import Ball, Box, Label, Vector

FRAMES = 3  # directions in which boxes may stand in a scene: along the walls, and two free ones
FLOOR, WALLS, CEILING = 0, 1, 2  # the first instances of every scene


@dataclass(frozen=True)
class Solid:
    """A box or a ball of the scene, its centre in the room's frame.

    Attributes:
        shape: The box, with extents along the axes of its frame, or the ball.
        frame: Index of the direction it stands in.
        label: Its class.
        instance: Which thing of the scene it belongs to.
    """

    shape: Box | Ball
    frame: int
    label: Label
    instance: int


@dataclass(frozen=True)
class Light:
    """A point light: where it is, and its colour times its strength."""

    position: Vector
    colour: Colour


@dataclass(frozen=True)
class Layout:
    """One scene, as plain data.

    Attributes:
        room: Width (x), height (y) and length (z) in metres; a corner is the origin.
        surfaces: Materials of floor, walls and ceiling.
        yaws: Turn of each frame about the vertical, in radians.
        solids: Everything in the room.
        lights: Two point lights.
        ambient: Light from everywhere.
        camera: Where it is seen from.
        exposure: Mean brightness aimed at.
        noise: Standard deviation of the sensor noise at full brightness, of 1.
    """

    room: Vector
    surfaces: tuple[Material, Material, Material]
    yaws: tuple[float, ...]
    solids: tuple[Solid, ...]
    lights: tuple[Light, Light]
    ambient: float
    camera: Camera
    exposure: float
    noise: float
