"""What each method gains over plain training against what a step of it costs, both of several paired seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dtme.viz.palette import FAINT, INK, METHODS, MUTED, QUALITATIVE
from dtme.viz.sheet import canvas, house_style, panel, sheet, text_width
from experiments.figures.legend_rows import key_rows

KINDS = {
    "plain": (METHODS["MT"], "plain training, for longer"),
    "paper": (METHODS["TM+TE"], "modulators and task tokens"),
    "ours": (QUALITATIVE[2], "low-rank updates"),
    "copies": (QUALITATIVE[6], "copies of blocks"),
    "control": (MUTED, "controls"),
}
_WIDTH, _HEIGHT, _LEFT, _TOP = 5.6, 3.4, 0.65, 0.95
_LINE = 0.125  # height of a label, in inches


@dataclass(frozen=True)
class Point:
    """One method.

    Attributes:
        label: As it is written.
        kind: A key of `KINDS`, which colours it.
        cost: Wall-clock of its training, as a multiple of plain training's.
        mean: Mean gain in Delta_m over MT.
        halfwidth: Of its 95 % interval; infinite for one seed.
    """

    label: str
    kind: str
    cost: float
    mean: float
    halfwidth: float


@house_style
def gain_by_cost(title: str, points: Sequence[Point], gap: float, seeds: int) -> Figure:
    """A dot with its interval per method, and a line at the gap to one model per task.

    Args:
        title: Of the figure.
        points: The methods.
        gap: How far single-task models are above MT, in points of Delta_m.
        seeds: How many the means are over.

    Raises:
        ValueError: There is no point.

    Example:
        >>> figure = gain_by_cost("nuclei", [Point("TM", "paper", 3.0, 0.1, 0.2), Point("MT 2x", "plain", 2.0, 0.0, 0.1)], 1.5, 5)
        >>> sorted(text.get_text() for text in figure.axes[1].texts)[:2]
        ['MT 2x', 'TM']
    """
    if not points:
        raise ValueError(f"points={list(points)!r}: there is nothing to draw.")
    drawn = {point.kind for point in points}
    key = [(colour, f"● {words}") for kind, (colour, words) in KINDS.items() if kind in drawn]
    places = key_rows((text_width(words) for _, words in key), _LEFT + _WIDTH - 0.15)
    top = _TOP + 0.22 * places[-1][1]
    figure = sheet(_LEFT + _WIDTH + 0.25, top + _HEIGHT + 0.6)
    page = canvas(figure)
    page.text(0.15, 0.25, title, fontsize=9.5, fontweight="bold", va="center")
    for (colour, words), (along, row) in zip(key, places, strict=True):
        page.text(0.15 + along, 0.55 + 0.22 * row, words, fontsize=8, color=colour, va="center")
    axes = panel(figure, _LEFT, top, _WIDTH, _HEIGHT)
    axes.axhline(0, color=METHODS["MT"], linewidth=1)
    axes.axhline(gap, color=METHODS["ST"], linewidth=1, linestyle=(0, (4, 3)))
    spread = [point.halfwidth if math.isfinite(point.halfwidth) else 0.0 for point in points]
    low = min(0.0, *(point.mean - width for point, width in zip(points, spread, strict=True)))
    high = max(gap, *(point.mean + width for point, width in zip(points, spread, strict=True)))
    axes.set_ylim(low - 0.12 * (high - low), high + 0.08 * (high - low))
    shares = [(0.09 + text_width(point.label, 7)) / _WIDTH for point in points]  # of the width, for a label
    axes.set_xlim(0.9, 0.92 + max((point.cost - 0.9) / (1 - own) for point, own in zip(points, shares, strict=True)))
    for point, width in zip(points, spread, strict=True):
        colour = KINDS[point.kind][0]
        axes.plot([point.cost] * 2, [point.mean - width, point.mean + width], color=colour, linewidth=1.2, alpha=0.55)
        axes.plot([point.cost], [point.mean], "o", color=colour, markersize=5)
    _label(axes, points)
    end = axes.get_xlim()[1]  # where rows are few
    axes.text(end, gap, "one model per task", fontsize=7.5, color=METHODS["ST"], ha="right", va="bottom")
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("wall-clock of training, as a multiple of plain training (MT)", fontsize=8, color=MUTED)
    over = f"{seeds} paired seeds, 95 % intervals" if seeds > 1 else "one seed"
    axes.set_ylabel(f"Δm over MT, in points ({over})", fontsize=8, color=MUTED)
    return figure


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Write the names beside the dots, each as near to its own height as dots and those written before leave free."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    per_inch, line = (right - left) / _WIDTH, _LINE * (high - low) / _HEIGHT
    dot = 0.05 * per_inch
    taken = [(point.cost - dot, point.cost + dot, point.mean) for point in points]
    for point in sorted(points, key=lambda point: (point.cost, -point.mean)):
        start = point.cost + 0.09 * per_inch
        end = start + text_width(point.label, 7) * per_inch
        steps = sorted((sign * count for count in range(30) for sign in (1, -1)), key=abs)
        height = next(
            height
            for height in (point.mean + step * line / 2 for step in steps)
            if all(abs(height - other) >= line or start > last or end < first for first, last, other in taken)
            or abs(height - point.mean) > 14 * line
        )
        taken.append((start, end, height))
        if abs(height - point.mean) >= line:  # too far for the eye to tell whose it is
            axes.plot([point.cost, start], [point.mean, height], color=MUTED, linewidth=0.6, zorder=1)
        axes.text(start, height, point.label, fontsize=7, color=INK, va="center")
