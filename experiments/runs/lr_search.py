"""Tuning: learning rates of trunk and heads, chosen once for MT and ST on the validation split and shared by every row."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from dtme._files import write_text
from dtme.metrics import delta_m
from experiments.dense.experiment import Bench

ROW_RATES = (0.3, 1.0)
HEAD_RATES = (1.0, 3.0)
FORMAT = "dtme.tuning"


def settings_of(bench: Bench) -> dict[tuple[float, float], Bench]:
    """One benchmark run per pair of learning rates: of the trunk, and of the heads over the trunk's."""
    return {
        (row, head): replace(
            bench,
            recipe=replace(bench.recipe, row_rate=row, head_rate=head),
            out=bench.out / f"row-{row:g}-head-{head:g}",
            held_out="val",
        )
        for row, head in product(ROW_RATES, HEAD_RATES)
    }


def scores(runs: Mapping[tuple[float, float], Sequence[Mapping[str, Any]]]) -> list[dict[str, float]]:
    """Delta_m of MT and ST under each pair, against ST under the first: the best for both has the highest sum.

    Args:
        runs: Per pair its results, one per seed.
    """
    first = next(iter(runs.values()))
    found = []
    for (row, head), own in runs.items():
        gains: dict[str, list[float]] = {"ST": [], "MT": []}
        for reference, run in zip(first, own, strict=True):
            higher = {task["name"]: task["higher_is_better"] for task in run["tasks"]}
            single = next(r["metrics"] for r in reference["rows"] if r["method"] == "ST")
            for method, values in gains.items():
                metrics = next(r["metrics"] for r in run["rows"] if r["method"] == method)
                values.append(delta_m(metrics, single, higher))
        means = {method: statistics.fmean(values) for method, values in gains.items()}
        found.append({"row_rate": row, "head_rate": head, **means, "sum": sum(means.values())})
    return sorted(found, key=lambda line: -line["sum"])


def write(path: Path, found: Sequence[Mapping[str, float]], run: Mapping[str, Any]) -> None:
    """Keep what was found, with what it was found with."""
    shared = {name: run[name] for name in ("suite", "command", "versions", "hardware", "settings")}
    write_text(path, json.dumps({"format": FORMAT, "version": 1, **shared, "scores": list(found)}, indent=1) + "\n")
