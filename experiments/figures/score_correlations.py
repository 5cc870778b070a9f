"""How well each score of a block ranks what an insert gains there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from dtme.viz.palette import FAINT, MUTED, QUALITATIVE
from dtme.viz.sheet import canvas, house_style, panel, sheet, text_width
from experiments.figures.legend_rows import key_rows

_ROW, _WIDTH, _TOP, _LINE = 0.36, 3.4, 0.8, 0.18


@house_style
def score_correlations(found: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """A dot per score and kind of insert at its rank correlation with the gain, from -1 to 1.

    Args:
        found: Per kind of insert and score the correlation over the blocks.
        title: Whose they are.

    Raises:
        ValueError: There is none.

    Example:
        >>> figure = score_correlations({"modulators": {"depth": 0.7, "range rate": -0.2}}, "nuclei")
        >>> [label.get_text() for label in figure.axes[1].get_yticklabels()]
        ['depth', 'range rate']
    """
    names: Sequence[str] = list(dict.fromkeys(name for of in found.values() for name in of))
    if not names:
        raise ValueError(f"found={dict(found)!r}: there is nothing to draw.")
    left, height = 0.35 + max(map(text_width, names)), _ROW * len(names)
    entries = [f"● {kind}" for kind in found]
    places = key_rows(map(text_width, entries), _WIDTH)
    top = _TOP + _LINE * places[-1][1]
    widest = max(_WIDTH, *map(text_width, entries))
    figure = sheet(max(left + widest + 0.3, text_width(title, 9.5, "bold") + 0.35), top + height + 0.6)
    page = canvas(figure)
    page.text(0.15, 0.25, title, fontsize=9.5, fontweight="bold", va="center")
    axes = panel(figure, left, top, _WIDTH, height)
    for place, (entry, correlations) in enumerate(zip(entries, found.values(), strict=True)):
        colour, offset = QUALITATIVE[place], 0.24 * (place - (len(found) - 1) / 2)
        start, row = places[place]
        page.text(left + start, 0.57 + _LINE * row, entry, fontsize=8, color=colour, va="center")
        rows = [names.index(name) + offset for name in correlations]
        axes.hlines(rows, 0, list(correlations.values()), color=colour, linewidth=1.2)
        axes.plot(list(correlations.values()), rows, "o", color=colour, markersize=5)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set(xlim=(-1.05, 1.05), ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(
        "Spearman's rank correlation, over the blocks,\nwith the gain of one insert there", fontsize=8, color=MUTED
    )
    return figure
