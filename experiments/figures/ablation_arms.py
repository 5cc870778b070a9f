"""From the rows of an ablation to its figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dtme._files import written_whole
from experiments.ablations import Ablation
from experiments.dense.methods import METHODS
from experiments.runner.jsonl import rows_of
from experiments.runner.paired_t import Paired, paired

if TYPE_CHECKING:
    from experiments.figures.arm_gains import ArmGain

PRICES = {"step": "step_cost", "analysis": "analysis_share"}
"""The figure of a row that each price of an ablation is."""


def gains(ablation: Ablation, runs: Sequence[Mapping[str, Any]]) -> list[ArmGain]:
    """Each arm's gain in Delta_m over MT, paired by seed.

    Args:
        ablation: Its arms.
        runs: Results with rows of all arms and of MT, one per seed.
    """
    from experiments.figures.arm_gains import ArmGain

    plain = rows_of(runs, "MT")
    found = []
    for label, method in ablation.arms:
        rows = rows_of(runs, method.name)
        own, other = ([of[seed]["delta_m"] for seed in rows] for of in (rows, plain))
        gain = paired(own, other) if method.name != "MT" else None
        cost = statistics.fmean(row[PRICES[ablation.price]] for row in rows.values())
        mean, halfwidth = (0.0, math.inf) if gain is None else (gain.mean, gain.halfwidth)
        found.append(
            ArmGain(
                label,
                mean,
                halfwidth,
                f"{cost:.2f} x" if ablation.price == "step" else f"{100 * cost:.1f} %",
                own=method in METHODS,
            )
        )
    return found


def changes(ablation: Ablation, runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Paired]]:
    """Per arm and space, the conflict after training less that before, paired by seed."""
    found: dict[str, dict[str, Paired]] = {}
    for label, method in ablation.arms:
        rows = rows_of(runs, method.name).values()
        found[label] = {
            space: paired(*([row[when][space] for row in rows] for when in ("conflict", "conflict_before")))
            for space in ("range", "null")
        }
    return found


def draw(ablation: Ablation, runs: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw an ablation, as SVG or whatever the suffix says."""
    from experiments.figures.arm_gains import arm_gains
    from experiments.figures.conflict_changes import conflict_changes
    from experiments.figures.cosine_histograms import cosine_histograms

    title = f"{runs[0]['suite']}: {ablation.says}"
    if ablation.figure == "conflict":
        figure = conflict_changes(changes(ablation, runs), title, len(runs))
    elif ablation.figure == "cosines":
        cosines = {
            label: np.concatenate([row["cosines"] for row in rows_of(runs, method.name).values()], axis=1)
            for label, method in ablation.arms
        }
        figure = cosine_histograms(cosines, title)
    else:
        figure = arm_gains(title, ablation.axis, gains(ablation, runs), len(runs), ablation.price)
    with written_whole(path) as temporary:
        dated = {"Date": None} if path.suffix == ".svg" else None  # so that the same results give the same file
        figure.savefig(temporary, format=path.suffix[1:], metadata=dated)
    return path
