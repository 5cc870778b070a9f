"""What streams gain over plain training against the parameters they carry; the marker tells what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from dtme.viz.palette import FAINT, METHODS, MUTED, QUALITATIVE
from dtme.viz.sheet import canvas, house_style, panel, sheet, text_width
from experiments.figures.legend_rows import key_rows

CONTENTS = {
    "paper": (METHODS["TM+TE"], "modulators, task tokens"),
    "updates": (QUALITATIVE[2], "low-rank updates"),
    "mixed": (QUALITATIVE[3], "all of these"),
    "copies": (QUALITATIVE[6], "copies of blocks"),
}
"""Per content of streams its colour and its name."""
PRICES = ((1.6, "o", "●"), (2.4, "s", "■"), (math.inf, "^", "▲"))
"""Up to which wall-clock, as a multiple of plain training's, a marker is drawn, and the same as a character."""
_WIDTH, _HEIGHT, _LEFT, _TOP = 5.6, 3.0, 0.65, 1.05


@dataclass(frozen=True)
class Carried:
    """Streams of one kind.

    Attributes:
        contents: A key of `CONTENTS`.
        parameters: That they add, in per cent of the model's.
        cost: Wall-clock of the training, as a multiple of plain training's.
        mean: Mean gain in Delta_m over MT.
        halfwidth: Of its 95 % interval; infinite for one seed.
    """

    contents: str
    parameters: float
    cost: float
    mean: float
    halfwidth: float


@house_style
def gain_by_parameters(title: str, points: Sequence[Carried], gap: float, seeds: int) -> Figure:
    """A marker with its interval per kind of streams, parameters on a logarithmic axis.

    Args:
        title: Of the figure.
        points: What streams carried.
        gap: How far single-task models are above MT, in points of Delta_m.
        seeds: How many the means are over.

    Raises:
        ValueError: There is no point, or one that adds no parameters.

    Example:
        >>> points = [Carried("paper", 1.3, 3.1, 0.1, 0.2), Carried("copies", 33.0, 1.5, 0.7, 0.3)]
        >>> gain_by_parameters("nuclei", points, 1.5, 3).axes[1].get_xscale()
        'log'
    """
    if not points or min(point.parameters for point in points) <= 0:
        raise ValueError(f"points={list(points)!r}: give at least one, each with the parameters that it adds, above 0.")
    figure = sheet(_LEFT + _WIDTH + 0.25, _TOP + _HEIGHT + 0.6)
    page = canvas(figure)
    page.text(0.15, 0.25, title, fontsize=9.5, fontweight="bold", va="center")
    drawn = {point.contents for point in points}
    key = [(colour, f"● {words}") for contents, (colour, words) in CONTENTS.items() if contents in drawn]
    places = key_rows((text_width(words) for _, words in key), _LEFT + _WIDTH - 0.15)
    for (colour, words), (along, _) in zip(key, places, strict=True):
        page.text(0.15 + along, 0.53, words, fontsize=8, color=colour, va="center")
    (first, _, one), (second, _, two), (_, _, three) = PRICES
    prices = f"wall-clock  {one} up to {first:g} x   {two} up to {second:g} x   {three} more"
    page.text(0.15, 0.79, prices, fontsize=8, color=MUTED, va="center")
    axes = panel(figure, _LEFT, _TOP, _WIDTH, _HEIGHT)
    axes.axhline(0, color=METHODS["MT"], linewidth=1)
    axes.axhline(gap, color=METHODS["ST"], linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    low, high = (edge(point.parameters for point in points) for edge in (min, max))
    axes.set_xlim(low / 1.7, high * 1.7)
    axes.text(low / 1.63, gap, "one model per task", fontsize=7.5, color=METHODS["ST"], va="bottom")
    for point in points:
        colour = CONTENTS[point.contents][0]
        marker = next(marker for price, marker, _ in PRICES if point.cost <= price)
        width = point.halfwidth if math.isfinite(point.halfwidth) else 0.0
        axes.plot(
            [point.parameters] * 2, [point.mean - width, point.mean + width], color=colour, alpha=0.3, linewidth=1
        )
        axes.plot([point.parameters], [point.mean], marker, color=colour, markersize=5.5, alpha=0.9)
    left, right = axes.get_xlim()
    shown = [step * 10.0**power for power in range(-3, 5) for step in (1, 2, 5) if left <= step * 10.0**power <= right]
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shown, [f"{share:g} %" for share in shown])
    axes.tick_params(length=0, labelsize=7.5)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("parameters added, for all tasks", fontsize=8, color=MUTED)
    over = f"{seeds} paired seeds, 95 % intervals" if seeds > 1 else "one seed"
    axes.set_ylabel(f"Δm over MT, in points ({over})", fontsize=8, color=MUTED)
    return figure
