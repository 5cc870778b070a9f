"""Conflict resolved against the cost of inference: a staircase of plans, and the streams they give each block."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dtme.plan.budget import Step, sum_resolved
from dtme.plan.cost import Cost, ModelFlops, price
from dtme.plan.plan import Plan
from dtme.plan.rates import ConflictRates
from dtme.plan.stream_layout import without_common_prefix
from dtme.viz.palette import BLOCK, FAINT, INK, METHODS, MUTED, PAPER, QUALITATIVE, ink_on
from dtme.viz.sheet import ellipsis, house_style, panel, sheet, text_width

_TOP, _WIDTH, _HEIGHT, _GAP = 0.4, 5.6, 2.2, 0.58
_MOST_NAMED = 24  # up to so many blocks are named one by one


@house_style
def cost_steps(rates: ConflictRates, steps: Sequence[Step], default: Plan) -> Figure:
    """The best that any budget buys, from the plain model on.

    Above, the conflict that the plan within each budget resolves, as a share of what the plan without one resolves, which
    is marked. Below, on the same axis, how many streams that plan gives each block, the first block at the top.

    Args:
        rates: With the FLOPs of its model.
        steps: Its plans by rising cost, from `dtme.plan.budget.find_steps`.
        default: The plan without a budget.

    Returns:
        A figure with three axes: the staircase, the streams per block, and the key to their colours.

    Raises:
        ValueError: The report holds no FLOPs, or there is no step.
    """
    if not steps or isinstance(rates.flops, str):
        raise ValueError(
            "cost_steps: without FLOPs in the report, or conflict to be resolved, there is nothing to draw."
        )
    bought, whole = price(default, rates.flops), sum_resolved(rates, default)
    end = max(len(rates.tasks), bought.ratio, steps[-1].cost)
    end += 0.02 * (end - 1)

    named = len(rates.blocks) <= _MOST_NAMED
    prefix, blocks = without_common_prefix([ellipsis(name, 40) for name in rates.blocks])
    left = max(0.62, *(text_width(name) + 0.25 for name in [*blocks, prefix]))
    below = max(0.9, len(blocks) * (0.2 if named else 0.07))
    figure = sheet(left + _WIDTH + 0.35, _TOP + _HEIGHT + _GAP + below + 0.85)

    above = panel(figure, left, _TOP, _WIDTH, _HEIGHT)
    _draw_staircase(above, steps, whole, bought, end)
    _heading(figure, left, 0.1, "Conflict resolved", "of what the plan without a budget resolves")

    top = _TOP + _HEIGHT + _GAP
    streams = panel(figure, left, top, _WIDTH, below)
    colours, scale = _draw_streams(streams, steps, rates, end)
    _heading(figure, left, top - 0.36, "Streams", "that this plan gives each block")
    streams.set_yticks(
        [place + 0.5 for place in range(len(blocks))] if named else [0.5, len(blocks) - 0.5],
        blocks if named else [blocks[0], blocks[-1]],
        fontsize=8,
    )
    width, height = figure.get_size_inches()
    figure.text(
        (left - 0.1) / width, 1 - (top - 0.07) / height, prefix, color=MUTED, ha="right", va="bottom", fontsize=7.5
    )
    streams.set_xlabel("inference of all tasks, × the plain model", fontsize=8, color=MUTED, labelpad=4)

    key = panel(figure, left, top + below + 0.5, 0.26 * len(rates.tasks), 0.17)
    _draw_key(key, len(rates.tasks), colours, scale)
    return figure


def _draw_staircase(axes: Axes, steps: Sequence[Step], whole: float, default: Cost, end: float) -> None:
    costs = [1.0, *(step.cost for step in steps), end]
    shares = [0.0, *(100 * step.resolved / whole for step in steps)]
    shares.append(shares[-1])
    axes.fill_between(costs, shares, step="post", color=BLOCK, linewidth=0)
    axes.step(costs, shares, where="post", color=QUALITATIVE[0], linewidth=1.6)
    colour = METHODS["TM+TE"]
    axes.scatter([default.ratio], [100], s=36, color=colour, edgecolors=PAPER, linewidths=0.8, zorder=4, clip_on=False)
    axes.annotate(
        f"the plan without a budget: {default.ratio:.2f} ×",
        (default.ratio, 100),
        (-6, 7),
        textcoords="offset points",
        color=colour,
        ha="right",
        fontsize=8,
    )
    half = next(step for step in steps if step.resolved >= whole / 2)
    axes.plot([half.cost] * 2, [0, 100 * half.resolved / whole], color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.annotate(
        f"half of it: {half.cost:.2f} ×", (half.cost, 0), (5, 6), textcoords="offset points", fontsize=8, color=INK
    )
    axes.set(xlim=(1, end), ylim=(0, 118))
    axes.set_yticks([0, 25, 50, 75, 100], [f"{share} %" for share in (0, 25, 50, 75, 100)])
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelbottom=False)  # the axis below is the same
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(length=0, labelsize=7.5, colors=MUTED)


def _draw_streams(
    axes: Axes, steps: Sequence[Step], rates: ConflictRates, end: float
) -> tuple[LinearSegmentedColormap, BoundaryNorm]:
    """A column per plan, as wide as the budgets it is the best for; a row per block."""
    assert isinstance(rates.flops, ModelFlops)
    tasks = len(rates.tasks)
    colours = LinearSegmentedColormap.from_list("streams", [BLOCK, QUALITATIVE[0], INK], tasks)
    scale = BoundaryNorm([count + 0.5 for count in range(tasks + 1)], tasks)
    carried = [dict.fromkeys(rates.blocks, 1), *(price(step.plan, rates.flops).streams for step in steps)]
    edges = [1.0, *(step.cost for step in steps), end]
    values = [[streams[block] for streams in carried] for block in rates.blocks]
    axes.pcolormesh(edges, range(len(rates.blocks) + 1), values, cmap=colours, norm=scale)
    axes.set(xlim=(1, end), ylim=(len(rates.blocks), 0))
    axes.hlines(
        range(1, len(rates.blocks)), 1, end, color=PAPER, linewidth=0.6 if len(rates.blocks) <= _MOST_NAMED else 0.15
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7.5, colors=MUTED)
    return colours, scale


def _draw_key(axes: Axes, tasks: int, colours: LinearSegmentedColormap, scale: BoundaryNorm) -> None:
    axes.set(xlim=(0, tasks), ylim=(0, 1))
    for count in range(1, tasks + 1):
        colour = colours(scale(count))
        axes.add_patch(Rectangle((count - 1, 0), 1, 1, facecolor=colour, edgecolor=PAPER))
        axes.text(count - 0.5, 0.47, str(count), color=ink_on(colour), ha="center", va="center", fontsize=7.5)
    axes.annotate(
        "streams",
        (1, 0.5),
        (6, 0),
        xycoords="axes fraction",
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color=MUTED,
    )
    axes.set_axis_off()


def _heading(figure: Figure, left: float, top: float, words: str, reading: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, words, fontsize=11, fontweight="bold", va="top")
    beside = left + text_width(words, 11, "bold") + 0.1
    figure.text(beside / width, 1 - (top + 0.045) / height, reading, color=MUTED, va="top")
