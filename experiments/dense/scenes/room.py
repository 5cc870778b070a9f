"""A room while it is being furnished: where things stand, and what of its floor is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from experiments.dense.scenes import furniture
from experiments.dense.scenes.camera import place
from experiments.dense.scenes.layout import CEILING, FRAMES, Solid
from experiments.dense.scenes.random_draws import Dice
from experiments.dense.scenes.solids import Ball, Box, Label, Piece, Vector


@dataclass(frozen=True)
class Footprint:
    """A rectangle of the floor that is taken, up to some height."""

    left: float
    front: float
    right: float
    back: float
    height: float

    def overlaps(self, other: Footprint) -> bool:
        """Whether the two share some floor."""
        return (
            self.left < other.right and other.left < self.right and self.front < other.back and other.front < self.back
        )


class Room:
    """A room while it is being furnished."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.width, self.length = dice.between(2.8, 5.0), dice.between(3.6, 6.0)
        self.height = dice.between(2.3, 2.9)
        self.camera = place(dice, self.width, self.length)
        self.yaws = (0.0, *(dice.between(-0.7, 0.7) for _ in range(FRAMES - 1)))
        self.taken: list[Footprint] = []
        self.solids: list[Solid] = []
        self.instances = CEILING + 1

    def put(
        self, piece: Piece, x: float, z: float, *, y: float = 0.0, frame: int = 0, quarters: int = 0, instance: int = -1
    ) -> None:
        """Stands a piece at (x, y, z), turned by its frame's yaw and some quarter turns."""
        if instance < 0:
            instance, self.instances = self.instances, self.instances + 1
        for part in piece.parts:
            shape = _stand(part, x, y, z, self.yaws[frame], quarters)
            self.solids.append(Solid(shape, frame, piece.label, instance))

    def footprint(
        self, half: tuple[float, float], height: float, x: float, z: float, yaw: float, quarters: int = 0
    ) -> Footprint:
        """The upright rectangle around a turned one."""
        w, d = half[:: -1 if quarters % 2 else 1]
        c, s = abs(math.cos(yaw)), abs(math.sin(yaw))
        w, d = c * w + s * d, s * w + c * d
        return Footprint(x - w, z - d, x + w, z + d, height)

    def free(self, spot: Footprint, *, clearance: float = 0.95) -> bool:
        """Whether a spot lies in the room, off the other things and not in front of the camera's nose."""
        inside = spot.left >= 0 and spot.front >= 0 and spot.right <= self.width and spot.back <= self.length
        x, _, z = self.camera.position
        dx, dz = max(spot.left - x, 0.0, x - spot.right), max(spot.front - z, 0.0, z - spot.back)
        return inside and math.hypot(dx, dz) > clearance and not any(spot.overlaps(other) for other in self.taken)

    def against_wall(self, piece: Piece) -> bool:
        """Tries to stand a piece with its back to a wall the camera sees."""
        gap = 0.01
        for _ in range(10):
            quarters = self.dice.pick((1, 2, 2, 3))  # left wall, back wall, right wall
            w, d = piece.half
            if quarters == 2:
                x, z = self.dice.between(w, self.width - w), self.length - d - gap
            else:
                x = d + gap if quarters == 1 else self.width - d - gap
                z = self.dice.between(w + 0.5, self.length - w)
            spot = self.footprint(piece.half, piece.height, x, z, 0.0, quarters)
            if self.camera.sees(x, z) and self.free(spot, clearance=1.0):
                self.taken.append(spot)
                self.put(piece, x, z, quarters=quarters)
                self._on_top(piece, x, z)
                return True
        return False

    def on_floor(self, piece: Piece, frame: int) -> tuple[float, float] | None:
        """Tries to stand a piece somewhere in view; returns where it stands."""
        for _ in range(12):
            x, z = self.dice.between(0.2, self.width - 0.2), self.dice.between(1.2, self.length - 0.2)
            spot = self.footprint(piece.half, piece.height, x, z, self.yaws[frame])
            if self.camera.sees(x, z, margin=-0.05) and self.free(spot):
                self.taken.append(spot)
                self.put(piece, x, z, frame=frame)
                self._on_top(piece, x, z)
                return x, z
        return None

    def dining(self, frame: int) -> None:
        """Tries to stand a table with chairs around it."""
        dice, yaw = self.dice, self.yaws[frame]
        table = furniture.table(dice, width=dice.between(0.45, 0.75))
        reach = (table.half[0] + 0.35, table.half[1] + 0.35)
        for _ in range(10):
            x, z = self.dice.between(0.8, self.width - 0.8), self.dice.between(1.6, self.length - 0.8)
            spot = self.footprint(reach, table.height, x, z, yaw)
            if not (self.camera.sees(x, z) and self.free(spot)):
                continue
            self.taken.append(spot)
            self.put(table, x, z, frame=frame)
            self._on_top(table, x, z)
            design = furniture.chair(dice)
            for quarters in dice.shuffled((0, 1, 2, 3))[: dice.count(1, 3)]:
                along = table.half[quarters % 2 == 0] + dice.between(0.0, 0.12)  # half under the top
                dx, dz = _rotate(*_rotate(0.0, -along, quarters * math.pi / 2), yaw)
                self.put(design, x + dx, z + dz, frame=frame, quarters=quarters)
            return

    def _on_top(self, piece: Piece, x: float, z: float) -> None:
        """Perhaps a lamp or a ball on a surface."""
        if piece.label not in (Label.TABLE, Label.CABINET) or piece.height > 1.2 or self.dice.chance(0.4):
            return
        thing = furniture.table_lamp(self.dice) if self.dice.chance(0.5) else furniture.ball(self.dice, high=0.13)
        self.put(thing, x + self.dice.between(-0.1, 0.1), z + self.dice.between(-0.1, 0.1), y=piece.height)

    def on_wall(self, piece: Piece) -> Vector | None:
        """Tries to hang a piece above the furniture of a wall the camera sees; returns a point before it."""
        dice, w = self.dice, piece.half[0] + 0.05
        for _ in range(10):
            quarters = dice.pick((1, 2, 2, 3))
            side = 0.0 if quarters == 1 else self.width
            along = dice.between(w, (self.width if quarters == 2 else self.length) - w)
            y = dice.between(0.9, max(0.95, self.height - piece.height - 0.15))
            x, z = (along, self.length) if quarters == 2 else (side, along)
            spot = self.footprint((w, 0.06), 0.0, x, z, 0.0, quarters)
            hidden = any(spot.overlaps(other) and other.height > y - 0.05 for other in self.taken)
            if hidden or y + piece.height > self.height - 0.05 or not self.camera.sees(x, z, margin=-0.05):
                continue
            if math.hypot(x - self.camera.position[0], z - self.camera.position[2]) < 1.2:
                continue
            self.taken.append(replace(spot, height=self.height))
            self.put(piece, x, z, y=y, quarters=quarters)
            inward = _rotate(0.0, 0.35, quarters * math.pi / 2)
            return x + inward[0], y + piece.height / 2, z + inward[1]
        return None


def _rotate(x: float, z: float, yaw: float) -> tuple[float, float]:
    c, s = math.cos(yaw), math.sin(yaw)
    return c * x + s * z, c * z - s * x


def _stand(shape: Box | Ball, x: float, y: float, z: float, yaw: float, quarters: int) -> Box | Ball:
    """The shape moved to (x, y, z) and turned, by quarter turns that keep a box along the axes of its frame."""
    dx, dy, dz = shape.centre
    material = shape.material
    for _ in range(quarters):
        dx, dz = dz, -dx
    if quarters % 2:
        material = material.turned()
    dx, dz = _rotate(dx, dz, yaw)
    centre = (x + dx, y + dy, z + dz)
    if isinstance(shape, Ball):
        return Ball(centre, shape.radius, material, shape.casts)
    w, h, d = shape.half
    return Box(centre, (d, h, w) if quarters % 2 else (w, h, d), material, shape.casts)
