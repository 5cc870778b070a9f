"""From the rows of a table to the figure of gains against costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dtme.bench.catalogue import method_of
from dtme.bench.lines import rows_of
from dtme.bench.methods import Method
from dtme.bench.statistics import paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dtme.viz.gain_by_cost import Point


def gains_by_cost(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """The figure of a table over several seeds.

    Args:
        runs: Results with rows of ST and MT, one per seed.
    """
    from dtme.viz.gain_by_cost import gain_by_cost

    names = dict.fromkeys(row["method"] for run in runs for row in run["rows"])
    points = [_point(runs, method_of(name)) for name in names if name not in ("ST", "MT")]
    gap = _against_plain(runs, "ST")[0]
    title = f"{runs[0]['suite']}: what is gained, and what it costs"
    return gain_by_cost(title, points, gap, len(runs))


def _point(runs: Sequence[Mapping[str, Any]], method: Method) -> Point:
    from dtme.viz.gain_by_cost import Point

    mean, halfwidth = _against_plain(runs, method.name)
    cost = statistics.fmean(row["wall_clock_ratio"] for row in rows_of(runs, method.name).values())
    return Point(method.name, _kind(method), cost, mean, halfwidth)


def _kind(method: Method) -> str:
    if method.plan is not None:
        return "ours" if method.name.startswith("Adapt") else "paper"
    return "plain" if method.lasts is not None or method.longer != 1 else "control"


def _against_plain(runs: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    own, plain = rows_of(runs, name), rows_of(runs, "MT")
    found = paired([row["delta_m"] for row in own.values()], [plain[seed]["delta_m"] for seed in own])
    return found.mean, found.halfwidth
