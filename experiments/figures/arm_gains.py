"""An ablation: what each arm gains over plain multi-task training, with its interval, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from dtme.viz.palette import FAINT, INK, METHODS, MUTED
from dtme.viz.sheet import canvas, house_style, panel, sheet, text_width

_ROW, _WIDTH, _TOP, _FOOT = 0.27, 3.6, 0.78, 0.6


@dataclass(frozen=True)
class ArmGain:
    """What one arm gained.

    Attributes:
        label: Its value on the axis.
        mean: Mean gain in Delta_m over MT, paired by seed.
        halfwidth: Of its 95 % interval; infinite for one seed.
        cost: What it costs, in words.
        own: Whether this is the table's own setting.
    """

    label: str
    mean: float
    halfwidth: float
    cost: str
    own: bool = False


@house_style
def arm_gains(title: str, axis: str, arms: Sequence[ArmGain], seeds: int, cost: str = "step") -> Figure:
    """One line per arm: a dot at the mean, a bar over the interval, the cost on the right.

    Args:
        title: What is varied, and where.
        axis: What the labels are values of.
        arms: From top to bottom.
        seeds: How many the means are over.
        cost: What it is that the arms' costs are of.

    Raises:
        ValueError: There is no arm.

    Example:
        >>> figure = arm_gains("rank", "rank", [ArmGain("1", 0.4, 0.1, "1.4 x"), ArmGain("4", 0.9, 0.2, "1.5 x", own=True)], 5)
        >>> [label.get_text() for label in figure.axes[1].get_yticklabels()]
        ['1', '4']
    """
    if not arms:
        raise ValueError(f"arms={list(arms)!r}: there is nothing to draw.")
    left = 0.35 + max(text_width(name) for name in (*(arm.label for arm in arms), axis))
    height = _ROW * len(arms)
    figure = sheet(max(left + _WIDTH + 0.85, text_width(title, 9.5, "bold") + 0.35), _TOP + height + _FOOT)
    page = canvas(figure)
    page.text(0.15, 0.27, title, fontsize=9.5, fontweight="bold", va="center")
    page.text(left - 0.1, _TOP - 0.12, axis, fontsize=8, color=MUTED, ha="right", va="bottom")
    page.text(left + _WIDTH + 0.1, _TOP - 0.12, cost, fontsize=8, color=MUTED, va="bottom")
    axes = panel(figure, left, _TOP, _WIDTH, height)
    axes.axvline(0, color=METHODS["MT"], linewidth=1)
    for place, arm in enumerate(arms):
        colour = METHODS["TM+TE"] if arm.own else INK
        if math.isfinite(arm.halfwidth):
            ends = (arm.mean - arm.halfwidth, arm.mean + arm.halfwidth)
            axes.plot(ends, (place, place), color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot([arm.mean], [place], "o", color=colour, markersize=5)
        page.text(left + _WIDTH + 0.1, _TOP + (place + 0.5) * _ROW, arm.cost, fontsize=8, va="center")
    axes.set_yticks(range(len(arms)), [arm.label for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    over = f"{seeds} paired seeds, 95 % intervals" if seeds > 1 else "one seed"
    axes.set_xlabel(
        f"Δm over MT at equal steps, in points\n({over}; coloured: as in the table)", fontsize=8, color=MUTED
    )
    return figure
