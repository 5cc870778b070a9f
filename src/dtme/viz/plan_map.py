"""The plan as a picture: the trunk from left to right, one line that parts into a stream per task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from dtme.plan.plan import Plan
from dtme.plan.stream_layout import groups_per_block, place_of, untangled, without_common_prefix
from dtme.streams.groups import Groups
from dtme.viz.palette import BLOCK, INK, MUTED, PAPER, SHARED, colours
from dtme.viz.sheet import canvas, ellipsis, house_style, sheet, text_width

_INSERTS = {
    "modulate": ("D", 0.0, "modulator: W ⊙ tokens + b"),
    "expand": ("s", 0.55, "task token: joins the tokens for one block"),
    "adapt": ("^", 0.9, "low-rank update of the weights"),
    "copies": ("P", 0.45, "copy of the block"),
}
"""Per field of a plan its marker, where on the way through the block it sits, and what it is."""


@dataclass(frozen=True)
class _Layout:
    """Where things are, in inches from the top left.

    Attributes:
        entry: Left edge of every block.
        width: Width of a block.
        row: Height of every task's own line.
        size: Size of the markers, in points.
    """

    entry: list[float]
    width: float
    row: dict[str, float]
    size: float

    def height(self, group: Sequence[str]) -> float:
        """Where the stream of a group of tasks runs."""
        return float(np.mean([self.row[task] for task in group]))

    @property
    def middle(self) -> float:
        """Where the stream of all tasks runs."""
        return self.height(list(self.row))


@house_style
def plan_map(plan: Plan, blocks: Sequence[str]) -> Figure:
    """The trunk from left to right: where streams part, and where modulators and task tokens sit on them.

    A block is as tall as the streams that run through it, which is what it costs.

    Args:
        plan: What is inserted where; it may be empty.
        blocks: Every block of the trunk, in the order in which they run, as in `ConflictReport.blocks`.

    Raises:
        ValueError: There is no block, or the plan names one that is not among them.

    Example:
        >>> plan = Plan(tasks=("depth", "semseg"), modulate={"blocks.1": ("depth", "semseg")})
        >>> plan_map(plan, ["blocks.0", "blocks.1"]).axes[0].get_title(loc="left")
        'Streams part at blocks.1'
    """
    if not blocks:
        raise ValueError("blocks=[]: give every block of the trunk, in order.")
    per_block = groups_per_block(plan, blocks)
    tasks = untangled(plan.tasks, per_block)
    pitch = min(0.85, max(0.36, 10.2 / len(blocks)))
    gaps = np.array([0.0 if len(groups) == 1 else 0.45 for groups in _changes(per_block)])
    spacing = 0.44 if len(tasks) <= 6 else 0.34
    names = max(text_width(ellipsis(task), 9, "bold") for task in tasks)
    prefix, short = without_common_prefix([ellipsis(name, 40) for name in blocks])
    turned = max(map(text_width, short)) > pitch - 0.05
    under = max(map(text_width, short)) if turned else 0.12
    layout = _Layout(
        entry=list(1.2 + pitch * np.arange(len(blocks)) + gaps.cumsum()),
        width=0.55 * pitch,
        row={task: 1.35 + spacing * place for place, task in enumerate(tasks)},
        size=float(np.clip(8.5 * pitch / 0.6, 6, 8.5)),
    )
    bottom = max(layout.row.values()) + 0.3
    figure = sheet(max(layout.entry[-1] + pitch + 0.85 + names, 8.2), bottom + under + 0.62)
    axes = canvas(figure)
    of_task = colours(tasks)

    _head(axes, plan, blocks, per_block)
    _brackets(axes, per_block, layout)
    for place, groups in enumerate(per_block):
        tokens = len(plan.expand.get(blocks[place], ())) if plan.joint_tokens else 0
        low = _draw_block(axes, layout, place, groups, tokens)
        axes.text(
            layout.entry[place] + layout.width / 2,
            low + 0.06,
            short[place],
            ha="center",
            va="top",
            rotation=90 if turned else 0,
            fontsize=8,
            color=MUTED,
        )
    if prefix:
        axes.text(layout.entry[0] - 0.12, layout.middle + 0.28, prefix, ha="right", va="top", color=MUTED, fontsize=7.5)
    _draw_streams(axes, layout, per_block, tasks, of_task)
    _draw_inserts(axes, layout, plan, blocks, per_block, of_task)
    _key(axes, plan, per_block, bottom + under + 0.42)
    return figure


def _changes(per_block: Sequence[Groups]) -> list[Groups]:
    """Per block its groups where they differ from those before, otherwise a single group."""
    before = [per_block[0][:1], *per_block[:-1]]
    return [groups if groups != last else groups[:1] for groups, last in zip(per_block, before, strict=True)]


def _head(axes: Axes, plan: Plan, blocks: Sequence[str], per_block: Sequence[Groups]) -> None:
    parted = [block for block, groups in zip(blocks, per_block, strict=True) if len(groups) > 1]
    passes = sum(len(groups) for groups in per_block)
    if parted:
        inserts = [name for name in plan.blocks if f"{name}.".startswith(f"{parted[0]}.")]
        late = parted[0] not in inserts and len(inserts) == 1  # what runs in the block before its last part runs once
        title = f"Streams part at {ellipsis(inserts[0] if late else parted[0], 40)}"
        line = (
            f"On more than one stream: {len(parted)} of {_blocks(len(blocks))}. All tasks together cost "
            f"{'at most ' if late else ''}{_blocks(passes)} instead of {len(blocks)} ({passes / len(blocks):.3g} ×); separate "
            f"models would cost {len(blocks) * len(plan.tasks)}."
        )
    else:
        title = "Streams never part"
        line = "The plan is empty: all tasks share the trunk to its end."
        if plan.blocks:
            line = "One stream sees the task tokens of all tasks."
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", x=0.15 / axes.get_xlim()[1], y=1, pad=-22)
    axes.text(0.15, 0.5, line, color=MUTED, va="center", fontsize=8)


def _blocks(number: int) -> str:
    return f"{number} block{'' if number == 1 else 's'}"


def _brackets(axes: Axes, per_block: Sequence[Groups], layout: _Layout) -> None:
    """Over every stretch of the trunk, how many streams run there; in as many words as there is room for."""
    place = 0
    for count, members in groupby(per_block, key=len):
        last = place + len(list(members)) - 1
        start, end = layout.entry[place], layout.entry[last] + layout.width
        words = ["one stream for all tasks", "one stream", "1"]
        if count > 1:
            words = [f"{count} streams, the same weights, one batch", f"{count} streams", str(count)]
        text = next((word for word in words if text_width(word) < end - start + 0.1), words[-1])
        axes.plot([start, start, end, end], [0.99, 0.93, 0.93, 0.99], color=MUTED, linewidth=0.8)
        axes.text((start + end) / 2, 0.87, text, ha="center", va="bottom", fontsize=8)
        place = last + 1


def _draw_block(axes: Axes, layout: _Layout, place: int, groups: Groups, joint_tokens: int) -> float:
    """The box of a block around its streams; returns its lower edge."""
    heights = [layout.height(group) for group in groups]
    half = max((max(heights) - min(heights)) / 2 + 0.2, joint_tokens * 0.07 + 0.08)
    middle = (max(heights) + min(heights)) / 2
    axes.add_patch(
        FancyBboxPatch(
            (layout.entry[place], middle - half),
            layout.width,
            2 * half,
            boxstyle=f"round,pad=0,rounding_size={min(0.07, layout.width / 3)}",
            facecolor=BLOCK,
            edgecolor="#b8c2cd",
            linewidth=0.8,
            label=f"block {place}",
        )
    )
    return middle + half


def _draw_streams(
    axes: Axes, layout: _Layout, per_block: Sequence[Groups], tasks: Sequence[str], of_task: dict[str, str]
) -> None:
    """Every stream from block to block, bending where it parts, and at the end to the branch of each task."""
    start = layout.entry[0] - 0.62
    axes.text(start - 0.06, layout.middle, "tokens", ha="right", va="center", fontsize=8)
    origin: Groups = (tuple(tasks),)
    x = start
    for place, groups in enumerate(per_block):
        for group in groups:
            parent = next(before for before in origin if group[0] in before)
            arrival = layout.entry[place] - 0.1 * layout.width
            _bend(
                axes,
                (x, layout.height(parent)),
                (arrival, layout.height(group)),
                group,
                of_task,
                layout.entry[place] + layout.width,
            )
        origin, x = groups, layout.entry[place] + layout.width
    for task in tasks:
        parent = next(group for group in origin if task in group)
        end = (x + 0.5, layout.row[task])
        _bend(axes, (x, layout.height(parent)), end, (task,), of_task, x + 0.55)
        axes.plot(
            x + 0.6, layout.row[task], marker="o", markersize=7, color=of_task[task], markeredgecolor=PAPER, zorder=4
        )
        axes.text(
            x + 0.72, layout.row[task], ellipsis(task), va="center", fontsize=9, fontweight="bold", label="branch"
        )


def _bend(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    group: Sequence[str],
    of_task: dict[str, str],
    onward: float,
) -> None:
    """A line that leaves and arrives level, and runs on; as thick as the tasks it serves are many."""
    half = (start[0] + end[0]) / 2
    curve = Path(
        [start, (half, start[1]), (half, end[1]), end, (onward, end[1])],
        [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO],
    )
    colour = of_task[group[0]] if len(group) == 1 else SHARED
    axes.add_patch(
        PathPatch(
            curve,
            fill=False,
            edgecolor=colour,
            linewidth=1.6 + 0.7 * min(len(group), 6),
            capstyle="round",
            zorder=2 if len(group) == 1 else 3,
        )
    )


def _draw_inserts(
    axes: Axes,
    layout: _Layout,
    plan: Plan,
    blocks: Sequence[str],
    per_block: Sequence[Groups],
    of_task: dict[str, str],
) -> None:
    for field, (marker, way, _) in _INSERTS.items():
        for block, members in getattr(plan, field).items():
            place = place_of(block, blocks)
            stacked = field == "expand" and plan.joint_tokens
            for index, task in enumerate(members):
                group = next(group for group in per_block[place] if task in group)
                height = layout.middle + 0.14 * (index - (len(members) - 1) / 2) if stacked else layout.height(group)
                axes.plot(
                    layout.entry[place] + way * layout.width,
                    height,
                    marker=marker,
                    markersize=layout.size * (0.85 if marker == "D" else 1),
                    markerfacecolor=of_task[task],
                    markeredgecolor=PAPER,
                    markeredgewidth=0.9,
                    linestyle="none",
                    zorder=5,
                    label=field,
                )


def _key(axes: Axes, plan: Plan, per_block: Sequence[Groups], height: float) -> None:
    x = 0.25
    for field, (marker, _, meaning) in _INSERTS.items():
        if not getattr(plan, field):
            continue
        if field == "expand" and plan.tokens_per_task > 1:
            meaning = f"{plan.tokens_per_task} task tokens: they join the tokens for one block"
        if field == "modulate" and plan.modulator == "batchnorm":
            meaning = "modulator: batch norm per task"
        axes.plot(x, height, marker=marker, markersize=7.5, color=INK, linestyle="none")
        axes.text(x + 0.13, height, meaning, va="center", fontsize=8)
        x += text_width(meaning) + 0.55
    if any(len(group) > 1 for groups in per_block for group in groups):
        axes.plot([x - 0.08, x + 0.18], [height, height], color=SHARED, linewidth=4)
        axes.text(x + 0.28, height, "a stream that several tasks share", va="center", fontsize=8)
