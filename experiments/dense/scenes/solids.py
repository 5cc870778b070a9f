"""What furniture is made of: classes, boxes, balls, and pieces out of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from experiments.dense.scenes.materials import Material

Vector = tuple[float, float, float]


class Label(IntEnum):
    """The classes of the semantic segmentation."""

    FLOOR = 0
    WALL = 1
    CEILING = 2
    TABLE = 3
    CHAIR = 4
    SOFA = 5
    BED = 6
    CABINET = 7
    BOOKSHELF = 8
    PICTURE = 9
    WINDOW = 10
    LAMP = 11
    BALL = 12


@dataclass(frozen=True)
class Box:
    """An upright box.

    Attributes:
        centre: In metres.
        half: Half of the extent along each axis, in metres.
        material: Its look.
        casts: Whether it throws a shadow: a lamp shade lets its light through, and what lies flat throws none.
    """

    centre: Vector
    half: Vector
    material: Material
    casts: bool = True


@dataclass(frozen=True)
class Ball:
    """A ball; the attributes are those of `Box`, with a radius in metres."""

    centre: Vector
    radius: float
    material: Material
    casts: bool = True


@dataclass(frozen=True)
class Piece:
    """One instance of a class.

    Attributes:
        label: Its class.
        parts: The solids it is made of; the piece stands on y = 0, around x = z = 0.
        half: Half of its width and of its depth on the floor, in metres.
        height: In metres.
    """

    label: Label
    parts: tuple[Box | Ball, ...]
    half: tuple[float, float]
    height: float
