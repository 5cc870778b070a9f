"""A figure laid out in inches from its top left corner, like a sheet of paper."""

from __future__ import annotations

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from dtme.viz.palette import INK, PAPER

FONT = "DejaVu Sans"  # comes with matplotlib: widths are the same everywhere

house_style = rc_context(
    {
        "font.family": FONT,
        "font.size": 8,
        "text.color": INK,
        "text.parse_math": False,  # a `$` in the name of a task is a `$`
        "text.usetex": False,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
)
"""Decorates what draws: a figure takes nothing of this from the settings of its user."""


def sheet(width: float, height: float) -> Figure:
    """An empty white figure, sizes in inches."""
    return Figure(figsize=(width, height), facecolor=PAPER)


def panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes whose top left corner lies at (left, top) inches from that of the figure."""
    full_width, full_height = figure.get_size_inches()
    return figure.add_axes(
        (left / full_width, 1 - (top + height) / full_height, width / full_width, height / full_height)
    )


def canvas(figure: Figure) -> Axes:
    """Invisible axes over the whole figure, in inches from its top left corner, to draw on freely."""
    width, height = figure.get_size_inches()
    axes = panel(figure, 0, 0, width, height)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def text_width(text: str, size: float = 8, weight: str = "normal") -> float:
    """Width of a line of text in inches.

    Example:
        >>> text_width("wide") == 2 * text_width("wide", size=4) > text_width("i")
        True
    """
    if not text.strip():
        return 0.0
    font = FontProperties(family=FONT, weight=weight)
    return float(TextPath((0, 0), text, size=size, prop=font, usetex=False).get_extents().width) / 72


def ellipsis(name: str, length: int = 24) -> str:
    """A name that is too long, without its middle.

    Example:
        >>> ellipsis("surface_normals_of_the_room", 15)
        'surface…he_room'
    """
    kept = (length - 1) // 2
    return name if len(name) <= length else f"{name[:kept]}…{name[-kept:]}"
