"""Training curves: one panel per task, one colour per method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dtme.viz.palette import FAINT, MUTED, colours
from dtme.viz.sheet import canvas, ellipsis, house_style, panel, sheet, text_width
from experiments.figures.legend_rows import key_rows

Curves = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
"""Per method and task, pairs of a step and the loss there."""

_FEW = 40  # up to so many points are drawn as they are


@house_style
def training_curves(curves: Curves) -> Figure:
    """The loss of every task over the steps of training, all methods in one panel.

    Many points are drawn faintly, and strongly their running mean over a tenth of them. The loss axis of a panel begins
    near its lowest and ends above all but the first few points, which would flatten the rest.

    Args:
        curves: Per method and task, pairs (step, loss). A method may lack tasks; losses that are not finite are left out.

    Raises:
        ValueError: There is no curve.

    Example:
        >>> figure = training_curves({"MT": {"depth": [(0, 1.0), (10, 0.5)]}, "ST": {"depth": [(0, 1.0), (10, 0.4)]}})
        >>> [axes.get_title(loc="left") for axes in figure.axes[1:]]
        ['depth']
    """
    tasks = list(dict.fromkeys(task for of_method in curves.values() for task in of_method))
    if not tasks:
        raise ValueError(f"curves={dict(curves)!r}: no method has a curve to draw.")
    columns = min(len(tasks), 4 if len(tasks) != 3 else 3)
    rows = math.ceil(len(tasks) / columns)
    width, height = 2.75, 2.35
    of_method = colours(curves)
    entries = [0.31 + text_width(method, 9) for method in of_method]
    full = max(0.35 + columns * width, 4.5, 0.75 + max(entries))
    places = key_rows(entries, full - 0.75, between=0.29)
    below_key = 0.2 * places[-1][1]
    figure = sheet(full, 0.45 + below_key + rows * height)
    _key(canvas(figure), of_method, places)
    for place, task in enumerate(tasks):
        left, top = 0.6 + place % columns * width, 0.72 + below_key + place // columns * height
        axes = panel(figure, left, top, width - 0.6, height - 0.8)
        axes.set_title(ellipsis(task), loc="left", fontsize=9, fontweight="bold")
        _draw(axes, {method: points[task] for method, points in curves.items() if task in points}, of_method)
        axes.set_xlabel("step" if place + columns >= len(tasks) else "", fontsize=8, color=MUTED)
        axes.set_ylabel("loss" if place % columns == 0 else "", fontsize=8, color=MUTED)
    return figure


def _draw(axes: Axes, of_task: Mapping[str, Sequence[Sequence[float]]], of_method: Mapping[str, str]) -> None:
    everything = []
    for method, points in of_task.items():
        kept = np.array([point for point in points if math.isfinite(point[1])], dtype=float).reshape(-1, 2)
        if not len(kept):
            continue
        steps, losses = kept.T
        everything.append(losses)
        colour = of_method[method]
        if len(losses) > _FEW:
            axes.plot(steps, losses, color=colour, linewidth=0.6, alpha=0.22, label=f"{method} as measured")
            steps, losses = _running_mean(steps, losses)
        axes.plot(steps, losses, color=colour, linewidth=1.5, label=method)
    if everything:
        values = np.concatenate(everything)
        low, high = float(values.min()), float(np.quantile(values, 0.98))
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(length=0, labelsize=7.5, colors=MUTED)


def _running_mean(
    steps: NDArray[np.float64], losses: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    window = max(2, len(losses) // 10)
    weights = np.full(window, 1 / window)
    return np.convolve(steps, weights, "valid"), np.convolve(losses, weights, "valid")


def _key(axes: Axes, of_method: Mapping[str, str], places: Sequence[tuple[float, int]]) -> None:
    for (method, colour), (start, row) in zip(of_method.items(), places, strict=True):
        x, y = 0.6 + start, 0.22 + 0.2 * row
        axes.add_line(Line2D([x, x + 0.24], [y, y], color=colour, linewidth=2.5, solid_capstyle="round"))
        axes.text(x + 0.31, y, method, va="center", fontsize=9)
