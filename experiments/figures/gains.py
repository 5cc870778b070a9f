"""From rows to the figures of what is gained: against what it costs, and against the parameters that streams carry."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.ablations import Ablation
from experiments.dense.branch_point import BranchPoint
from experiments.dense.methods import Method
from experiments.runner.jsonl import rows_of
from experiments.runner.paired_t import paired
from experiments.runs.by_name import method_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.figures.gain_by_cost import Point
    from experiments.figures.gain_by_parameters import Carried

CARRYING = (
    "contents",
    "position",
    "tokens",
    "modulator",
    "fraction",
    "layers",
    "rank",
    "up-to-copies",
    "parting",
    "copies-moment",
)
"""The ablations that vary what streams carry, or in how many blocks."""


def gains_by_cost(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """The figure of a table over several seeds.

    Args:
        runs: Results with rows of ST and MT, one per seed.
    """
    from experiments.figures.gain_by_cost import gain_by_cost

    names = dict.fromkeys(row["method"] for run in runs for row in run["rows"])
    points = [_point(runs, method_of(name)) for name in names if name not in ("ST", "MT")]
    gap = _against_plain(runs, "ST")[0]
    title = f"{runs[0]['suite']}: what is gained, and what it costs"
    return gain_by_cost(title, points, gap, len(runs))


def gains_by_parameters(found: Sequence[tuple[Ablation, Sequence[Mapping[str, Any]]]]) -> Figure:
    """The figure of some ablations on one suite: all arms that insert something at the start.

    Args:
        found: Ablations, and their results with rows of ST and MT, one per seed; arms that several have are drawn once.
    """
    from experiments.figures.gain_by_parameters import gain_by_parameters

    points: dict[str, Carried] = {}
    for ablation, runs in found:
        for _, method in ablation.arms:
            if method.branch == BranchPoint() and (method.plan is not None or method.change is not None):
                points[method.name] = _carried(runs, method)
    first = found[0][1]
    title = f"{first[0]['suite']}: what streams gain by what they carry"
    return gain_by_parameters(title, list(points.values()), _against_plain(first, "ST")[0], len(first))


def _carried(runs: Sequence[Mapping[str, Any]], method: Method) -> Carried:
    from experiments.figures.gain_by_parameters import Carried

    rows = rows_of(runs, method.name).values()
    percent, cost = (
        statistics.fmean(row[of] for row in rows) for of in ("parameters_added_percent", "wall_clock_ratio")
    )
    return Carried(_contents(method), percent, cost, *_against_plain(runs, method.name))


def _contents(method: Method) -> str:
    if method.plan is None or method.name.startswith("own"):
        return "copies"
    return "updates" if method.name.startswith("Adapt") else "mixed" if "Adapt" in method.name else "paper"


def _point(runs: Sequence[Mapping[str, Any]], method: Method) -> Point:
    from experiments.figures.gain_by_cost import Point

    mean, halfwidth = _against_plain(runs, method.name)
    cost = statistics.fmean(row["wall_clock_ratio"] for row in rows_of(runs, method.name).values())
    return Point(method.name, _kind(method), cost, mean, halfwidth)


def _kind(method: Method) -> str:
    if method.name.startswith("own"):
        return "copies"
    if method.plan is not None:
        return "ours" if method.name.startswith("Adapt") else "paper"
    return "plain" if method.lasts is not None or method.longer != 1 else "control"


def _against_plain(runs: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    own, plain = rows_of(runs, name), rows_of(runs, "MT")
    found = paired([row["delta_m"] for row in own.values()], [plain[seed]["delta_m"] for seed in own])
    return found.mean, found.halfwidth
