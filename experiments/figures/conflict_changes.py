"""How much conflict training leaves: change of the mean rate from before to after, per method and space (Tab. 14)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from dtme.viz.palette import FAINT, MUTED, QUALITATIVE
from dtme.viz.sheet import canvas, house_style, panel, sheet, text_width

if TYPE_CHECKING:
    from experiments.runner.paired_t import Paired

_ROW, _WIDTH, _TOP = 0.4, 3.8, 0.75


@house_style
def conflict_changes(changes: Mapping[str, Mapping[str, Paired]], title: str, seeds: int) -> Figure:
    """Two bars per method, range space and null space, with 95 % intervals; below 0 there is less conflict than before.

    Args:
        changes: Per method and space the change of the mean rate, in shares.
        title: Whose they are.
        seeds: How many the means are over.

    Raises:
        ValueError: There is no method.
    """
    if not changes:
        raise ValueError(f"changes={dict(changes)!r}: there is nothing to draw.")
    left, height = 0.35 + max(map(text_width, changes)), _ROW * len(changes)
    figure = sheet(max(left + _WIDTH + 0.3, text_width(title, 9.5, "bold") + 0.35), _TOP + height + 0.6)
    page = canvas(figure)
    page.text(0.15, 0.25, title, fontsize=9.5, fontweight="bold", va="center")
    axes = panel(figure, left, _TOP, _WIDTH, height)
    for place, space in enumerate(("range", "null")):
        colour = QUALITATIVE[place]
        page.text(left + 1.1 * place, 0.55, f"{space} space", fontsize=8, color=colour, fontweight="bold", va="center")
        for row, of_space in enumerate(changes.values()):
            change, at = of_space[space], row + 0.36 * (place - 0.5)
            axes.barh(at, 100 * change.mean, 0.3, color=colour)
            if math.isfinite(change.halfwidth):
                ends = [100 * (change.mean - change.halfwidth), 100 * (change.mean + change.halfwidth)]
                axes.plot(ends, [at, at], color="black", linewidth=1)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(changes)), list(changes))
    axes.set_ylim(len(changes) - 0.5, -0.5)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    over = f"{seeds} paired seeds, 95 % intervals" if seeds > 1 else "one seed"
    axes.set_xlabel(f"change of the mean rate of conflict, in points of per cent\n({over})", fontsize=8, color=MUTED)
    return figure
