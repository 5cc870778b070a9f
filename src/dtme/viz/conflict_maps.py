"""Rates of conflict as heat maps: blocks by pairs of tasks, one map for each space."""

from __future__ import annotations

import itertools
import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from dtme.plan.rates import ConflictRates
from dtme.plan.stream_layout import without_common_prefix
from dtme.viz.palette import FAINT, INK, MUTED, PAPER, RATES, ink_on
from dtme.viz.sheet import ellipsis, house_style, panel, sheet, text_width

Rates = NDArray[np.float64]

_MOST_WRITTEN = (24, 10)  # up to so many blocks and pairs, cells carry their numbers
_SCORE_WIDTH = 1.8
_SPACES = (
    ("range", "Range space", "modulators go where this is high"),
    ("null", "Null space", "task tokens go where this is high"),
)


@house_style
def conflict_maps(report: ConflictRates) -> Figure:
    r"""The rates of a report as two maps on one colour scale, with the score of every block beside them.

    Rows are blocks, the first at the top; columns are pairs of tasks. A dot is a block's score, the mean of its row, with
    its half-width. Where cells are few, the rate and its half-width are written in them; an asterisk marks blocks that
    the samples did not settle.

    Returns:
        A figure with five axes: map and scores of the range space, map and scores of the null space, colour scale.

    Example:
        >>> import torch
        >>> rate = torch.tensor([0.1, 0.4]).view(2, 1, 1) * (1 - torch.eye(2))
        >>> report = ConflictRates(("a", "b"), ("x.0", "x.1"), (8, 8), (3, 3), rate, rate, rate / 9, rate / 9, 9,
        ...                         (("", "shared"), ("shared", "")), (0.0, 0.0), 100.0, 0.95)
        >>> [text.get_text() for text in conflict_maps(report).axes[0].texts]
        ['0.10\n±.01', '0.40\n±.04']
    """
    pairs = list(itertools.combinations(range(len(report.tasks)), 2))
    first, second = np.array(pairs).T
    rates = {space: _rows(getattr(report, f"{space}_rate"))[:, first, second] for space, _, _ in _SPACES}
    widths = {space: _rows(getattr(report, f"{space}_halfwidth"))[:, first, second] for space, _, _ in _SPACES}
    scale = _scale(np.concatenate(list(rates.values())), 20)
    chance = {space: _chance_of(report, space) for space, _, _ in _SPACES}
    reach = _reach(rates, widths, chance)

    written = len(report.blocks) <= _MOST_WRITTEN[0] and len(pairs) <= _MOST_WRITTEN[1]
    prefix, blocks = without_common_prefix([ellipsis(name, 40) for name in report.blocks])
    blocks = [
        f"{short}*" if name in report.undecided else short for short, name in zip(blocks, report.blocks, strict=True)
    ]
    tasks = [ellipsis(task) for task in report.tasks]
    column = max(0.62 if written else 0.17, 2.1 / len(pairs))
    row = 0.36 if written else 0.19
    labels, rotated = _pair_labels([(tasks[i], tasks[j]) for i, j in pairs], column)

    left = max(text_width(name) for name in [*blocks, prefix]) + 0.3
    over = max(text_width(label, 7.5) for label in labels) + 0.1 if rotated else 0.34
    top = 0.55 + over
    map_width, map_height = len(pairs) * column, len(blocks) * row
    whole = left + map_width + 0.12 + _SCORE_WIDTH
    figure = sheet(2 * whole + 0.25, top + map_height + 0.88)

    for place, (space, heading, reading) in enumerate(_SPACES):
        start = place * (whole + 0.15)
        axes = panel(figure, start + left, top, map_width, map_height)
        _draw_map(axes, rates[space], scale)
        axes.set_xticks(np.arange(len(pairs)) + 0.5, labels, rotation=90 if rotated else 0, fontsize=7.5)
        axes.set_yticks(np.arange(len(blocks)) + 0.5, blocks, fontsize=8)
        if written:
            _write_cells(axes, rates[space], widths[space], scale)
        beside = panel(figure, start + left + map_width + 0.12, top, _SCORE_WIDTH - 0.05, map_height)
        _draw_scores(beside, rates[space].mean(1), widths[space].mean(1), chance[space], scale, reach)
        figure.text(
            *_at(figure, start + left, 0.12),
            heading,
            fontsize=11,
            fontweight="bold",
            va="top",
            label=f"{space}-heading",
        )
        figure.text(*_at(figure, start + left, 0.33), reading, color=MUTED, va="top")
        figure.text(
            *_at(figure, start + left - 0.1, top - 0.07),
            prefix,
            color=MUTED,
            ha="right",
            va="bottom",
            fontsize=7.5,
        )

    _draw_key(figure, left, top + map_height + 0.35, scale, report, widths)
    return figure


def _rows(tensor: Tensor) -> Rates:
    return tensor.detach().to("cpu").double().numpy()


def _scale(rates: Rates, steps: int) -> Normalize:
    """The range of the rates in whole steps, two at least, so that noise does not fill the colours."""
    known = rates[np.isfinite(rates)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    low, high = math.floor(low * steps + 1e-6), math.ceil(high * steps - 1e-6)
    while high - low < 2:
        low, high = max(0, low - 1), min(steps, high + 1)
    return Normalize(low / steps, high / steps)


def _reach(rates: dict[str, Rates], widths: dict[str, Rates], chance: dict[str, Rates]) -> tuple[float, float]:
    """The range of the scores, their intervals and chance, the same for both spaces."""
    ends = [level[np.isfinite(level)] for level in chance.values()]
    for space, rate in rates.items():
        spread = np.where(np.isfinite(widths[space]), widths[space], 0.0).mean(1)
        ends += [rate.mean(1) - spread, rate.mean(1) + spread]
    scale = _scale(np.clip(np.concatenate(ends), 0, 1), 50)
    return float(scale.vmin or 0), float(scale.vmax or 1)


def _pair_labels(pairs: list[tuple[str, str]], column: float) -> tuple[list[str], bool]:
    """Labels of the columns, in two lines where they fit, else turned."""
    if max(text_width(f"{first} ×", 7.5) for pair in pairs for first in pair) < column - 0.06:
        return [f"{first} ×\n{second}" for first, second in pairs], False
    return [f"{first} × {second}" for first, second in pairs], True


def _draw_map(axes: Axes, rates: Rates, scale: Normalize) -> None:
    axes.pcolormesh(np.ma.masked_invalid(rates), cmap=RATES, norm=scale, edgecolors=PAPER, linewidth=0.6)
    axes.set_facecolor(FAINT)
    axes.invert_yaxis()
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)


def _write_cells(axes: Axes, rates: Rates, widths: Rates, scale: Normalize) -> None:
    colours = matplotlib.colormaps[RATES]
    for (row, column), rate in np.ndenumerate(rates):
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{rate:.2f}\n{_halfwidth(float(widths[row, column]))}" if math.isfinite(rate) else "–",
            color=ink_on(colours(scale(rate))) if math.isfinite(rate) else INK,
            ha="center",
            va="center",
            fontsize=7,
            linespacing=1.1,
        )


def _halfwidth(width: float, digits: int = 2) -> str:
    return f"±{width:.{digits}f}".replace("±0.", "±.") if math.isfinite(width) else "±?"


def _chance_of(report: ConflictRates, space: str) -> Rates:
    """What the score of every block is held against, not a number where that was not measured."""
    score = report.range_chance_score() if space == "range" else report.null_chance_score()
    return np.full(len(report.blocks), math.nan) if score is None else _rows(score)


def _draw_scores(
    axes: Axes, scores: Rates, widths: Rates, chance: Rates, scale: Normalize, reach: tuple[float, float]
) -> None:
    """A dot with its interval per block, its numbers, and a diamond at chance."""
    low, high = reach
    rows = np.arange(len(scores)) + 0.5
    known = np.isfinite(scores)
    spread = np.where(np.isfinite(widths), widths, 0.0)
    axes.set(xlim=(low, low + (high - low) * _SCORE_WIDTH / 0.95), ylim=(len(scores), 0))  # the rest is for numbers
    axes.hlines(rows, low, high, color=FAINT, linewidth=1)
    axes.hlines(rows[known], (scores - spread)[known], (scores + spread)[known], color=INK, linewidth=1.4)
    axes.scatter(chance, rows, s=20, marker="D", facecolors="none", edgecolors=MUTED, linewidths=0.9, zorder=2)
    style = {"s": 26, "edgecolors": INK, "linewidths": 0.8, "zorder": 3}
    axes.scatter(scores[known], rows[known], c=scores[known], cmap=RATES, norm=scale, **style)
    for row, score, width in zip(rows, scores, widths, strict=True):
        number = f"{score:.3f} {_halfwidth(width, 3)}" if math.isfinite(score) else "–"
        axes.text(high + (high - low) * 0.06, row, number, va="center", fontsize=7)
    axes.set_title("score of the block", fontsize=7.5, loc="left", color=MUTED, pad=4)
    axes.set_xticks([low, high], [f"{low:.2f}", f"{high:.2f}"], fontsize=6.5, color=MUTED)
    axes.set_yticks([])
    axes.tick_params(length=2, color=MUTED, pad=2)
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)


def _draw_key(
    figure: Figure, left: float, top: float, scale: Normalize, report: ConflictRates, widths: dict[str, Rates]
) -> None:
    axes = panel(figure, left, top, 2.6, 0.13)
    bar = figure.colorbar(ScalarMappable(scale, RATES), cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    low, high = float(scale.vmin or 0), float(scale.vmax or 1)
    bar.set_ticks([low, (low + high) / 2, high], labels=[f"{value:.3g}" for value in (low, (low + high) / 2, high)])
    axes.tick_params(length=2, labelsize=7.5, pad=2)
    axes.set_xlabel("conflict rate: share of tokens where two tasks pull apart", fontsize=7.5, labelpad=2, loc="left")
    finite = np.concatenate([width[np.isfinite(width)] for width in widths.values()])
    largest = f"the largest is {_halfwidth(float(finite.max()))}" if finite.size else "none could be estimated"
    lines = [f"± half-width at {report.level:.0%}, {report.samples} samples; {largest}"]
    if report.range_chance is not None:
        lines.append("◇ chance: the same between gradients of different samples")
    if any("disjoint" in row for row in report.pairing):
        lines.append("some pairs share no input and are compared by sums over samples")
    if report.undecided:
        lines.append("* place in the default plan not settled by these samples")
    figure.text(
        *_at(figure, left + 3.1, top - 0.03), "\n".join(lines), fontsize=7.5, color=MUTED, va="top", linespacing=1.5
    )


def _at(figure: Figure, x: float, y: float) -> tuple[float, float]:
    width, height = figure.get_size_inches()
    return x / width, 1 - y / height
