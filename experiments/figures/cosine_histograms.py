"""Histograms of the cosines between the tasks' parameter gradients, in thirds of the training (Fig. 4)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dtme.viz.palette import FAINT, MUTED, colours
from dtme.viz.sheet import canvas, house_style, panel, sheet, text_width
from experiments.figures.legend_rows import key_rows

_THIRDS = ("first third of training", "second third", "last third")
_WIDTH, _HEIGHT = 2.6, 1.25  # of a panel with what is left free around it, and of the outlines in it
_LINE, _SHARE = 0.18, 0.13  # height of a row of the key and of a line of shares


@house_style
def cosine_histograms(cosines: Mapping[str, ArrayLike], title: str) -> Figure:
    """How often which cosine was met, one panel per third of the training, one outline per method.

    Args:
        cosines: Per method an array, looks in order by pairs of tasks, of all seeds side by side.
        title: Whose they are.

    Raises:
        ValueError: A method has fewer than three looks.

    Example:
        >>> figure = cosine_histograms({"MT": np.linspace(-1, 1, 12).reshape(6, 2)}, "scenes")
        >>> [axes.get_title(loc="left") for axes in figure.axes[1:]]
        ['first third of training', 'second third', 'last third']
    """
    arrays = {method: np.asarray(values, dtype=float) for method, values in cosines.items()}
    for method, values in arrays.items():
        if values.ndim != 2 or len(values) < 3:
            raise ValueError(f"cosines[{method!r}] has shape {values.shape}: give three looks or more, a row for each.")
    full = max(0.6 + 3 * _WIDTH, 0.3 + max(text_width(name, weight="bold") for name in arrays))
    places = key_rows((text_width(name, weight="bold") for name in arrays), full - 0.3)
    top, shares = 0.95 + _LINE * places[-1][1], 0.12 + _SHARE * len(arrays)
    figure = sheet(full, top + shares + _HEIGHT + 0.6)
    page = canvas(figure)
    page.text(0.15, 0.25, title, fontsize=9.5, fontweight="bold", va="center")
    of_method = colours(arrays)
    for (method, colour), (start, row) in zip(of_method.items(), places, strict=True):
        y = 0.52 + _LINE * row
        page.text(0.15 + start, y, method, fontsize=8, color=colour, fontweight="bold", va="center")
    bins = np.linspace(-1, 1, 41).tolist()
    for place, third in enumerate(_THIRDS):
        axes = panel(figure, 0.5 + place * _WIDTH, top, _WIDTH - 0.35, shares + _HEIGHT)
        axes.axvline(0, color=FAINT, linewidth=1)
        for method, values in arrays.items():
            part = np.array_split(values, 3)[place].ravel()
            below = f"{np.mean(part < 0):.0%} below 0"
            colour = of_method[method]
            axes.hist(part, bins=bins, histtype="step", density=True, color=colour, linewidth=1.3, label=below)
        axes.set_title(third, loc="left", fontsize=8.5, fontweight="bold")
        axes.set_xlabel("cosine", fontsize=8, color=MUTED)
        axes.legend(fontsize=6.5, frameon=False, loc="upper left", handlelength=0.8)
        axes.set_ylim(0, axes.get_ylim()[1] * (shares + _HEIGHT) / _HEIGHT)  # the shares stand above all lines
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure
