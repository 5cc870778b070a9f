"""What surfaces look like: two colours mixed by a pattern that is solid in space."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from enum import IntEnum

from experiments.dense.scenes.random_draws import Dice

Colour = tuple[float, float, float]


class Pattern(IntEnum):
    """How the two colours of a material are mixed."""

    PLAIN = 0
    CHECKER = 1  # alternating cells; stripes where only one axis has a scale
    PATCHWORK = 2  # every cell its own colour; book spines where only one axis has a scale
    WOOD = 3


@dataclass(frozen=True)
class Material:
    """The look of one surface.

    Attributes:
        pattern: How the colours are mixed.
        first: RGB in [0, 1], as the eye grades it (the square root of what is reflected).
        second: Likewise.
        scale: Cells per metre along the three axes of the solid; 0 leaves an axis out of the pattern.
        glow: Light the surface gives off by itself, in units of its colour.
    """

    pattern: Pattern
    first: Colour
    second: Colour
    scale: tuple[float, float, float] = (0.0, 0.0, 0.0)
    glow: float = 0.0

    def turned(self) -> Material:
        """The same material on a solid turned by a quarter about the vertical."""
        return replace(self, scale=self.scale[::-1])


def paint(dice: Dice, *, saturation: float = 0.75, dark: float = 0.2, bright: float = 0.85) -> Colour:
    """A random colour of limited saturation and brightness."""
    return colorsys.hsv_to_rgb(dice.between(0.0, 1.0), dice.between(0.05, saturation), dice.between(dark, bright))


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or brighter."""
    red, green, blue = (min(1.0, channel * factor) for channel in colour)
    return red, green, blue


def plain(dice: Dice, colour: Colour | None = None) -> Material:
    """One colour, slightly mottled."""
    colour = colour or paint(dice)
    return Material(Pattern.PLAIN, colour, shade(colour, 0.85), (31.0, 37.0, 29.0))


def wood(dice: Dice) -> Material:
    """Grain along the x axis, from pale pine to dark walnut."""
    colour = colorsys.hsv_to_rgb(dice.between(0.04, 0.11), dice.between(0.4, 0.75), dice.between(0.2, 0.75))
    return Material(
        Pattern.WOOD, colour, shade(colour, dice.between(0.45, 0.75)), (1.5, 14.0, dice.between(10.0, 18.0))
    )


def checker(dice: Dice, *, cells: float) -> Material:
    """Squares, `cells` to a metre."""
    colour = paint(dice)
    second = paint(dice) if dice.chance(0.5) else shade(colour, dice.between(0.4, 0.8))
    return Material(Pattern.CHECKER, colour, second, (cells, cells, cells))


def stripes(dice: Dice, *, cells: float, upright: bool = True) -> Material:
    """Stripes, `cells` to a metre, upright on walls or else level."""
    material = checker(dice, cells=cells)
    return replace(material, scale=(cells, 0.0, cells) if upright else (0.0, cells, 0.0))


def patchwork(dice: Dice, *, cells: float) -> Material:
    """Squares of random colours, as on a quilt or an abstract picture."""
    return Material(Pattern.PATCHWORK, paint(dice), paint(dice), (cells, cells, cells))


def spines(dice: Dice) -> Material:
    """The backs of books that stand in a row along the x axis."""
    return Material(Pattern.PATCHWORK, paint(dice), paint(dice), (dice.between(14.0, 26.0), 0.0, 0.0))


def fabric(dice: Dice) -> Material:
    """Whatever a sofa or a blanket may be covered with."""
    draw = dice.between(0.0, 1.0)
    if draw < 0.45:
        return plain(dice)
    if draw < 0.65:
        return stripes(dice, cells=dice.between(5.0, 14.0))
    if draw < 0.85:
        return checker(dice, cells=dice.between(4.0, 12.0))
    return patchwork(dice, cells=dice.between(4.0, 9.0))


def timber(dice: Dice) -> Material:
    """Whatever a table or a cabinet may be made of."""
    return wood(dice) if dice.chance(0.65) else plain(dice)


def glowing(colour: Colour, strength: float) -> Material:
    """A lamp shade or a bright window pane."""
    return Material(Pattern.PLAIN, colour, shade(colour, 0.9), (5.0, 5.0, 5.0), strength)
