"""An ablation as a table: each arm's gain over plain training, or what training did to its conflict, suite beside suite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.ablations import Ablation
from experiments.figures.ablation_arms import changes
from experiments.runner.jsonl import read_lines, rows_of
from experiments.runner.paired_t import Paired
from experiments.tables.comparison import against_plain

SUITES = ("nuclei", "scenes")


def ablation_table(ablation: Ablation, folder: Path) -> str:
    """The table, as Markdown, of all suites that the ablation was run on.

    Args:
        ablation: Which.
        folder: Of its results, a file of lines for each suite.

    Raises:
        ValueError: It was run on none.
    """
    paths = {suite: folder / f"{suite}-{ablation.name}.jsonl" for suite in SUITES}
    runs = {suite: read_lines(path) for suite, path in paths.items() if path.exists()}
    if not runs:
        raise ValueError(
            f"{folder} has no results of {ablation.name!r}: run `python -m experiments ablate {ablation.name} SUITE`."
        )
    head, rows = [ablation.axis], [[label] for label, _ in ablation.arms]
    for suite, own in runs.items():
        names, columns = _changes(ablation, own) if ablation.figure == "conflict" else _gains(ablation, own)
        head += [f"{suite}: {name}" for name in names]
        rows = [row + cells for row, cells in zip(rows, columns, strict=True)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _gains(ablation: Ablation, runs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Per arm its gain over MT, p and price."""

    def price(method: str) -> str:
        rows = rows_of(runs, method).values()
        if ablation.price == "analysis":
            return f"{100 * fmean(row['analysis_share'] for row in rows):.1f} %"
        return f"{fmean(row['wall_clock_ratio'] for row in rows):.2f} x"

    names = ["Δm over MT", "p", "analysis" if ablation.price == "analysis" else "wall-clock"]
    return names, [[*against_plain(runs, method.name, "delta_m"), price(method.name)] for _, method in ablation.arms]


def _changes(ablation: Ablation, runs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Per arm what training did to the mean rate of conflict in either space, in points of per cent."""

    def words(change: Paired) -> str:
        spread = f" ± {100 * change.halfwidth:.1f}" if math.isfinite(change.halfwidth) else ""
        return f"{100 * change.mean:+.1f}{spread}"

    return ["range space", "null space"], [
        [words(of_space["range"]), words(of_space["null"])] for of_space in changes(ablation, runs).values()
    ]
