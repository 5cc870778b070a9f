"""Furniture as compositions of boxes and balls, in its own frame: x to the right, y up, the front towards +z."""

from __future__ import annotations

from experiments.dense.scenes.materials import (
    Material,
    checker,
    fabric,
    glowing,
    paint,
    patchwork,
    plain,
    spines,
    stripes,
    timber,
    wood,
)
from experiments.dense.scenes.random_draws import Dice
from experiments.dense.scenes.solids import Ball, Box, Label, Piece


def _box(
    x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], material: Material, *, casts: bool = True
) -> Box:
    """The box between the given bounds along each axis."""
    spans = (x, y, z)
    cx, cy, cz = ((low + high) / 2 for low, high in spans)
    hx, hy, hz = ((high - low) / 2 for low, high in spans)
    return Box((cx, cy, cz), (hx, hy, hz), material, casts)


def _legs(width: float, depth: float, height: float, thickness: float, material: Material) -> list[Box]:
    """Four legs in the corners of a rectangle of the given half width and half depth."""
    x, z = width - thickness, depth - thickness
    return [
        Box((sx * x, height / 2, sz * z), (thickness, height / 2, thickness), material)
        for sx in (-1, 1)
        for sz in (-1, 1)
    ]


def table(dice: Dice, *, width: float | None = None) -> Piece:
    """A top on four legs."""
    w = width or dice.between(0.45, 0.9)
    d, h = dice.between(0.35, 0.5), dice.between(0.68, 0.78)
    material = timber(dice)
    top = checker(dice, cells=dice.between(4.0, 9.0)) if dice.chance(0.2) else material
    slab = _box((-w, w), (h - dice.between(0.03, 0.07), h), (-d, d), top)
    return Piece(Label.TABLE, (slab, *_legs(w - 0.03, d - 0.03, h - 0.03, 0.03, material)), (w, d), h)


def coffee_table(dice: Dice) -> Piece:
    """A low table."""
    w, d, h = dice.between(0.35, 0.6), dice.between(0.25, 0.4), dice.between(0.32, 0.45)
    material = timber(dice)
    shelf = _box((-w + 0.05, w - 0.05), (0.1, 0.13), (-d + 0.05, d - 0.05), material)
    top = _box((-w, w), (h - 0.05, h), (-d, d), material)
    parts = (top, *_legs(w, d, h - 0.05, 0.03, material), *([shelf] if dice.chance(0.5) else []))
    return Piece(Label.TABLE, parts, (w, d), h)


def chair(dice: Dice) -> Piece:
    """A seat on four legs, with a back."""
    w, d = dice.between(0.2, 0.25), dice.between(0.2, 0.25)
    seat, back = dice.between(0.42, 0.48), dice.between(0.8, 1.05)
    frame = timber(dice)
    cover = fabric(dice) if dice.chance(0.5) else frame
    return Piece(
        Label.CHAIR,
        (
            _box((-w, w), (seat - 0.05, seat), (-d, d), cover),
            _box((-w, w), (seat + dice.pick((0.0, 0.18)), back), (-d, -d + 0.045), cover),
            *_legs(w, d, seat - 0.05, 0.022, frame),
        ),
        (w, d),
        back,
    )


def sofa(dice: Dice) -> Piece:
    """A base with seat cushions between two arms and a back."""
    seats = dice.count(1, 3)
    w, d = 0.32 * seats + 0.15, dice.between(0.4, 0.48)
    seat, arm, back = dice.between(0.38, 0.46), dice.between(0.55, 0.66), dice.between(0.75, 0.95)
    cover = fabric(dice)
    cushion = fabric(dice) if dice.chance(0.3) else cover
    inner = w - 0.14
    cushions = [
        _box(
            (-inner + 2 * inner * i / seats + 0.01, -inner + 2 * inner * (i + 1) / seats - 0.01),
            (seat - 0.14, seat),
            (-d + 0.2, d),
            cushion,
        )
        for i in range(seats)
    ]
    pillow = Box((dice.pick((-1, 1)) * (inner - 0.2), seat + 0.16, -d + 0.27), (0.17, 0.16, 0.06), fabric(dice))
    parts = (
        _box((-w, w), (0.06, seat - 0.14), (-d, d), cover),
        _box((-w, w), (seat - 0.14, back), (-d, -d + 0.2), cover),
        _box((-w, -inner), (seat - 0.14, arm), (-d + 0.2, d), cover),
        _box((inner, w), (seat - 0.14, arm), (-d + 0.2, d), cover),
        *cushions,
        *([pillow] if dice.chance(0.5) else []),
    )
    return Piece(Label.SOFA, parts, (w, d), back)


def bed(dice: Dice) -> Piece:
    """A frame with headboard, mattress, blanket and pillows; the head is at the back."""
    pillows = dice.count(1, 2)
    w, d = 0.4 + 0.3 * (pillows - 1) + dice.between(0.0, 0.1), dice.between(0.95, 1.05)
    top, head = dice.between(0.4, 0.55), dice.between(0.75, 1.15)
    frame, linen = timber(dice), plain(dice, paint(dice, saturation=0.25, dark=0.65, bright=0.95))
    fold = dice.between(-0.5, 0.1)
    spread = [-w / 2, w / 2] if pillows == 2 else [0.0]
    parts = (
        _box((-w, w), (0.05, top - 0.18), (-d + 0.05, d), frame),
        _box((-w, w), (0.0, head), (-d, -d + 0.05), frame),
        _box((-w + 0.02, w - 0.02), (top - 0.18, top), (-d + 0.05, d - 0.02), linen),
        _box((-w - 0.01, w + 0.01), (top - 0.25, top + 0.03), (fold, d + 0.01), fabric(dice)),
        *(
            Box((x, top + 0.07, -d + 0.3), (min(0.33, 0.8 * w / pillows), 0.07, 0.2), plain(dice, linen.first))
            for x in spread
        ),
    )
    return Piece(Label.BED, parts, (w + 0.01, d + 0.01), head)


def cabinet(dice: Dice) -> Piece:
    """A chest or wardrobe with doors and handles, too flat to make edges."""
    tall = dice.chance(0.4)
    w, d = dice.between(0.4, 0.75), dice.between(0.2, 0.3)
    h = dice.between(1.6, 2.05) if tall else dice.between(0.6, 1.05)
    body = timber(dice)
    front = timber(dice) if dice.chance(0.3) else body
    doors, handle = dice.count(2, 3), plain(dice)
    step = 2 * w / doors
    parts: list[Box | Ball] = [_box((-w, w), (0.0, h), (-d, d - 0.02), body)]
    for i in range(doors):
        left = -w + i * step
        parts.append(
            _box((left + 0.015, left + step - 0.015), (0.08, h - 0.03), (d - 0.02, d - 0.018), front, casts=False)
        )
        parts.append(Box((left + step - 0.07, h * 0.55, d - 0.0175), (0.02, 0.06, 0.0005), handle, casts=False))
    return Piece(Label.CABINET, tuple(parts), (w, d), h)


def bookshelf(dice: Dice) -> Piece:
    """Boards between two sides, with rows of books."""
    w, d, h = dice.between(0.35, 0.65), dice.between(0.14, 0.19), dice.between(1.3, 2.1)
    levels = max(3, round(h / 0.42))
    material = timber(dice)
    gap = (h - 0.03) / levels
    parts: list[Box | Ball] = [
        _box((-w, w), (0.0, h), (-d, -d + 0.02), material),
        _box((-w, -w + 0.03), (0.0, h), (-d, d), material),
        _box((w - 0.03, w), (0.0, h), (-d, d), material),
    ]
    for level in range(levels + 1):
        y = level * gap
        parts.append(_box((-w + 0.03, w - 0.03), (y, y + 0.03), (-d + 0.02, d), material))
        if level < levels and dice.chance(0.85):
            left = dice.between(-w + 0.03, -0.2 * w) if dice.chance(0.5) else -w + 0.03
            right = dice.between(0.2 * w, w - 0.03)
            height = gap * dice.between(0.55, 0.85)
            parts.append(
                _box((left, right), (y + 0.03, y + 0.03 + height), (-d + 0.02, d - 0.05), spines(dice), casts=False)
            )
    return Piece(Label.BOOKSHELF, tuple(parts), (w, d), h)


def picture(dice: Dice) -> Piece:
    """A canvas in a frame; it hangs with its back at z = 0."""
    w, h = dice.between(0.18, 0.5), dice.between(0.3, 0.75)
    pattern = dice.pick((0, 0, 1, 2, 3))
    cells = dice.between(3.0, 12.0)
    if pattern == 0:
        canvas = patchwork(dice, cells=cells)
    elif pattern == 1:
        canvas = stripes(dice, cells=cells, upright=dice.chance(0.5))
    else:
        canvas = checker(dice, cells=cells) if pattern == 2 else plain(dice)
    frame = timber(dice)
    parts = (
        _box((-w, w), (0.0, h), (0.0, 0.02), frame, casts=False),
        _box((-w + 0.04, w - 0.04), (0.04, h - 0.04), (0.02, 0.026), canvas, casts=False),
    )
    return Piece(Label.PICTURE, parts, (w, 0.013), h)


def window(dice: Dice) -> Piece:
    """A bright pane behind a cross of bars; it hangs with its back at z = 0."""
    w, h = dice.between(0.4, 0.8), dice.between(0.8, 1.2)
    frame = plain(dice, paint(dice, saturation=0.15, dark=0.5, bright=0.95))
    sky = (dice.between(0.45, 0.7), dice.between(0.65, 0.8), dice.between(0.85, 1.0))
    bar, cross = 0.025, h * dice.between(0.45, 0.7)
    parts = (
        _box((-w, w), (0.0, h), (0.0, 0.012), glowing(sky, dice.between(0.8, 1.6)), casts=False),
        _box((-w, w), (0.0, 0.05), (0.012, 0.015), frame, casts=False),
        _box((-w, w), (h - 0.05, h), (0.012, 0.015), frame, casts=False),
        _box((-w, -w + 0.05), (0.05, h - 0.05), (0.012, 0.015), frame, casts=False),
        _box((w - 0.05, w), (0.05, h - 0.05), (0.012, 0.015), frame, casts=False),
        _box((-bar, bar), (0.05, h - 0.05), (0.012, 0.0145), frame, casts=False),
        _box((-w + 0.05, w - 0.05), (cross - bar, cross + bar), (0.012, 0.014), frame, casts=False),
    )
    return Piece(Label.WINDOW, parts, (w, 0.03), h)


def _bulb(dice: Dice) -> Material:
    return glowing((1.0, dice.between(0.75, 0.95), dice.between(0.45, 0.75)), dice.between(0.9, 1.6))


def floor_lamp(dice: Dice) -> Piece:
    """A pole on a foot, with a shade that glows."""
    h, pole = dice.between(1.3, 1.75), plain(dice, paint(dice, saturation=0.2))
    shade = _shade(dice, y=h, size=dice.between(0.14, 0.2))
    parts = (
        _box((-0.14, 0.14), (0.0, 0.03), (-0.14, 0.14), pole),
        _box((-0.018, 0.018), (0.03, h), (-0.018, 0.018), pole),
        shade,
    )
    return Piece(Label.LAMP, parts, (0.2, 0.2), h + 0.2)


def table_lamp(dice: Dice) -> Piece:
    """A small lamp to stand on something."""
    h, foot = dice.between(0.2, 0.3), plain(dice)
    parts = (
        _box((-0.05, 0.05), (0.0, h), (-0.05, 0.05), foot),
        _shade(dice, y=h + 0.08, size=dice.between(0.09, 0.13)),
    )
    return Piece(Label.LAMP, parts, (0.13, 0.13), h + 0.2)


def _shade(dice: Dice, *, y: float, size: float) -> Box | Ball:
    material = _bulb(dice)
    if dice.chance(0.5):
        return Ball((0.0, y, 0.0), size, material, casts=False)
    return Box((0.0, y, 0.0), (size, 0.8 * size, size), material, casts=False)


def pendant(dice: Dice) -> Piece:
    """A globe on a cord; it hangs from y = 0 downwards."""
    drop, radius = dice.between(0.25, 0.55), dice.between(0.1, 0.17)
    parts = (
        Box((0.0, -drop / 2, 0.0), (0.01, drop / 2, 0.01), plain(dice, (0.1, 0.1, 0.1)), casts=False),
        Ball((0.0, -drop, 0.0), radius, _bulb(dice), casts=False),
    )
    return Piece(Label.LAMP, parts, (radius, radius), drop + radius)


def ball(dice: Dice, *, low: float = 0.08, high: float = 0.22) -> Piece:
    """A ball to play with."""
    radius = dice.between(low, high)
    looks = (plain(dice), stripes(dice, cells=dice.between(5.0, 9.0)), checker(dice, cells=dice.between(5.0, 9.0)))
    solid = Ball((0.0, radius, 0.0), radius, dice.pick(looks))
    return Piece(Label.BALL, (solid,), (radius, radius), 2 * radius)


def rug(dice: Dice) -> Piece:
    """A pattern on the floor: it belongs to the floor, and a tenth of a millimetre makes no edge."""
    w, d = dice.between(0.7, 1.4), dice.between(0.5, 1.0)
    material = wood(dice) if dice.chance(0.1) else fabric(dice)
    return Piece(Label.FLOOR, (_box((-w, w), (0.0, 0.0001), (-d, d), material, casts=False),), (w, d), 0.0001)
