"""Every decision of chance about a scene except its sensor noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from experiments.dense.scenes import furniture
from experiments.dense.scenes.layout import FLOOR, FRAMES, Layout, Light
from experiments.dense.scenes.materials import Colour, Material, checker, paint, plain, stripes, wood
from experiments.dense.scenes.random_draws import Dice
from experiments.dense.scenes.room import Footprint, Room
from experiments.dense.scenes.solids import Piece


def furnish(seed: int, scene: int) -> Layout:
    """The layout of one scene, a function of its two arguments alone.

    Example:
        >>> furnish(0, 3) == furnish(0, 3)
        True
    """
    dice = Dice(seed, scene)
    room = Room(dice)
    lights = [_ceiling_light(room)]
    for make in dice.shuffled(_WALL_PIECES)[: dice.count(2, 4)]:
        room.against_wall(make(dice))
    if dice.chance(0.55):
        room.dining(frame=1)
    if dice.chance(0.35):
        room.on_floor(furniture.coffee_table(dice), frame=2)
    for _ in range(dice.count(0, 2)):
        room.on_floor(furniture.chair(dice), frame=2)
    if dice.chance(0.45):
        spot = room.on_floor(lamp := furniture.floor_lamp(dice), frame=0)
        if spot:
            lights.append(
                Light((spot[0], lamp.height - 0.2, spot[1]), _strength((1.0, 0.75, 0.5), dice.between(0.6, 1.2)))
            )
    for _ in range(dice.count(0, 3)):
        room.on_floor(furniture.ball(dice), frame=2)
    for make in _hangings(dice):
        before = room.on_wall(make(dice))
        if before and make is furniture.window:
            lights.append(Light(before, _strength((0.75, 0.9, 1.0), dice.between(1.0, 2.5))))
    if dice.chance(0.4):
        frame = dice.count(0, FRAMES - 1)
        carpet, x, z = furniture.rug(dice), room.width * dice.between(0.35, 0.65), room.length * dice.between(0.4, 0.6)
        if _within(room, room.footprint(carpet.half, 0.0, x, z, room.yaws[frame])):
            room.put(carpet, x, z, frame=frame, instance=FLOOR)
    lights.append(
        Light((room.width * dice.between(0.2, 0.8), room.height - 0.3, 0.4), _strength((1.0, 0.95, 0.9), 0.5))
    )
    return Layout(
        room=(room.width, room.height, room.length),
        surfaces=_surfaces(dice),
        yaws=room.yaws,
        solids=tuple(room.solids),
        lights=(lights[0], lights[1]),
        ambient=dice.between(0.12, 0.3),
        camera=room.camera,
        exposure=dice.between(0.75, 1.3),
        noise=dice.between(0.008, 0.035),
    )


_WALL_PIECES: tuple[Callable[[Dice], Piece], ...] = (
    furniture.sofa,
    furniture.bed,
    furniture.cabinet,
    furniture.bookshelf,
    furniture.table,
)


def _hangings(dice: Dice) -> Iterable[Callable[[Dice], Piece]]:
    return [*([furniture.window] if dice.chance(0.6) else []), *[furniture.picture] * dice.count(0, 3)]


def _ceiling_light(room: Room) -> Light:
    """The main light, in a globe where one hangs from the ceiling."""
    dice = room.dice
    x, z = room.width * dice.between(0.3, 0.7), room.length * dice.between(0.35, 0.75)
    drop = 0.15
    if dice.chance(0.5):
        lamp = furniture.pendant(dice)
        room.put(lamp, x, z, y=room.height)
        drop = lamp.height - lamp.half[0]
    return Light((x, room.height - drop, z), _strength((1.0, dice.between(0.8, 0.98), dice.between(0.6, 0.95)), 1.6))


def _surfaces(dice: Dice) -> tuple[Material, Material, Material]:
    """Materials of the floor, the walls and the ceiling."""
    floors = (wood(dice), wood(dice), checker(dice, cells=dice.between(1.5, 4.0)), plain(dice))
    pale = plain(dice, paint(dice, saturation=0.4, dark=0.5, bright=0.95))
    walls = (pale, pale, pale, stripes(dice, cells=dice.between(2.0, 7.0)), plain(dice))
    return dice.pick(floors), dice.pick(walls), plain(dice, paint(dice, saturation=0.15, dark=0.7, bright=0.95))


def _within(room: Room, spot: Footprint) -> bool:
    return spot.left > 0 and spot.front > 0 and spot.right < room.width and spot.back < room.length


def _strength(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor
