"""What training does to images it has seen and to others: the losses of both on the way, and how far apart they end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.runner.jsonl import rows_of
from experiments.tables.comparison import against_plain

Runs = Sequence[Mapping[str, Any]]
"""Results with looks in their rows, one per seed."""


def gap(row: Mapping[str, Any], at: int = -1) -> float:
    """How much higher losses are on new images than on those trained on, in per cent: the geometric mean over tasks.

    Args:
        row: A row with looks.
        at: Which of the looks, in the order of their steps.

    Example:
        >>> look = {"step": 5, "losses": {"a": 1.0, "b": 2.0}}
        >>> f"{gap({'looks': [{**look, 'split': 'train'}, {'step': 5, 'split': 'test', 'losses': {'a': 4.0, 'b': 2.0}}]}):.0f}"
        '100'
    """
    train, test = losses_at(row, "train")[at], losses_at(row, "test")[at]
    return 100 * math.expm1(fmean(math.log(test[task] / train[task]) for task in train))


def losses_at(row: Mapping[str, Any], split: str) -> list[dict[str, float]]:
    """The losses of a row on one split, in the order of the looks."""
    return [look["losses"] for look in row["looks"] if look["split"] == split]


def overfitting_table(runs: Runs, methods: Sequence[str]) -> str:
    """Per row, where losses end on either split against MT's, and the gap between the splits, as Markdown.

    Args:
        runs: Results, one per seed.
        methods: The rows.

    Raises:
        ValueError: A row was not measured on the way.
    """
    lines = [
        "| | loss on images trained on | loss on new images | gap | gap against MT | p |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    with_gaps = [{**run, "rows": [{**row, "gap": gap(row)} for row in run["rows"] if "looks" in row]} for run in runs]
    for method in methods:
        own, plain = rows_of(with_gaps, method), rows_of(with_gaps, "MT")
        if not own or not plain:
            raise ValueError(
                f"{method!r} or 'MT' was not measured on the way: results of bench --trunk have such rows."
            )
        ends = []
        for split in ("train", "test"):
            logs = [_against(own[seed], plain[seed], split) for seed in own if seed in plain]
            ends.append("0" if method == "MT" else f"{100 * math.expm1(fmean(logs)):+.1f} %")
        gaps = fmean(row["gap"] for row in own.values())
        lines.append(
            f"| {method} | {' | '.join(ends)} | {gaps:.1f} % | {' | '.join(against_plain(with_gaps, method, 'gap'))} |"
        )
    return "\n".join(lines) + "\n"


def _against(row: Mapping[str, Any], plain: Mapping[str, Any], split: str) -> float:
    """The mean over tasks of the logarithm of a row's last loss over MT's."""
    own, others = losses_at(row, split)[-1], losses_at(plain, split)[-1]
    return fmean(math.log(own[task] / others[task]) for task in own)


def looks_as_curves(runs: Runs, methods: Sequence[str]) -> dict[str, dict[str, list[list[float]]]]:
    """Losses on either split over the steps, means over seeds, as `training_curves` draws them."""
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for method in methods:
        rows = list(rows_of(runs, method).values())
        for split, says in (("train", "trained on"), ("test", "new images")):
            steps = [look["step"] for look in rows[0]["looks"] if look["split"] == split]
            of_seeds = [losses_at(row, split) for row in rows]
            curves[f"{method}, {says}"] = {
                task: [[step, fmean(own[place][task] for own in of_seeds)] for place, step in enumerate(steps)]
                for task in of_seeds[0][0]
            }
    return curves
