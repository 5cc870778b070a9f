"""The table of text tasks: per method each task's score, the mean with its spread, the paired difference to MT, and the price."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from experiments.runner.jsonl import rows_of
from experiments.runner.paired_t import spread
from experiments.tables.comparison import against_plain

Runs = Sequence[Mapping[str, Any]]
"""Results, one per seed."""


def cells(runs: Runs, methods: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, as text; of all methods or of some.

    The difference to MT is that of the means within a seed: its mean, half-width of the 95 % interval and p (Student's t).
    """
    tasks = [f"{task['name']} {task['metric']}" for task in runs[0]["tasks"]]
    head = ["", *tasks, "mean", "against MT", "p", "Δm %", "added", "step", "inference", "wall-clock"]
    every = dict.fromkeys(row["method"] for run in runs for row in run["rows"])
    return head, [_row(runs, method) for method in methods or every]


def _row(runs: Runs, method: str) -> list[str]:
    own = list(rows_of(runs, method).values())

    def mean(of: str) -> float:
        return statistics.fmean(row[of] for row in own)

    means = [row["mean"] for row in own]
    gains = [row["delta_m"] for row in own if row["delta_m"] is not None]
    added = round(mean("parameters_added"))
    return [
        method if len(own) == len(runs) else f"{method} ({len(own)} of {len(runs)} seeds)",
        *(f"{statistics.fmean(row['metrics'][task['name']] for row in own):.2f}" for task in runs[0]["tasks"]),
        f"{statistics.fmean(means):.2f}" + (f" ± {spread(means):.2f}" if len(means) > 1 else ""),
        *against_plain(runs, method, "mean"),
        "0" if method == "ST" else f"{statistics.fmean(gains):+.2f}" if len(gains) == len(own) else "-",
        f"{added:,} ({mean('parameters_added_percent'):.2f} %)" if added else "0",
        f"{mean('step_cost'):.2f} x",
        f"{mean('inference_cost'):.2f} x",
        f"{mean('wall_clock_ratio'):.2f} x",
    ]


def notes(runs: Runs) -> list[str]:
    """What stands below the table: how the average is formed, what is partial or cut, what costs are."""
    row = runs[0]["rows"][0]
    shared = {**row, **runs[0]}
    seeds = f"{len(runs)} seeds, mean ± standard deviation" if len(runs) > 1 else "one seed"
    return [
        f"Development scores of the last step, {seeds}. Mean: {shared['average']}.",
        "Against MT: difference of the means within a seed, with its 95 % interval and p of Student's t.",
        "Costs are multiples of MT, taken in turns with it; added: parameters beside MT's.",
        *shared["remarks"],
    ]


def table(runs: Runs) -> Table:
    """The table for the terminal."""
    head, rows = cells(runs)
    title = f"{runs[0]['suite']}: {len(runs)} seed{'s' if len(runs) > 1 else ''}"
    drawn = Table(
        title=title, title_justify="left", box=box.SIMPLE, caption="\n".join(notes(runs)), caption_justify="left"
    )
    for column, name in enumerate(head):
        drawn.add_column(name.replace(" ", "\n", 1), justify="right" if column else "left")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def markdown(runs: Runs, methods: Sequence[str] | None = None) -> str:
    """The table as Markdown, with its notes; of all methods or of some."""
    head, rows = cells(runs, methods)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return drawn + "\n\n" + "\n".join(f"- {note}" for note in notes(runs)) + "\n"
