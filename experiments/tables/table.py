"""The table a benchmark run ends in, for the terminal and as Markdown: one seed as it is, several as mean and spread."""

from __future__ import annotations

import statistics
from collections import Counter
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
    """Head and rows of the table, as text.

    Several seeds add the difference to MT within a seed: mean, half-width of the 95 % interval, p-value (Student's t).

    Args:
        runs: Results, one per seed.
        methods: The rows, in order; `None` shows all.
    """
    arrows = {True: "↑", False: "↓"}
    tasks = runs[0]["tasks"]
    several = len(runs) > 1
    head = ["", *(f"{task['name']} {task['metric']} {arrows[task['higher_is_better']]}" for task in tasks)]
    head += ["Δm % ↑", *(["against MT", "p"] if several else [])]
    head += ["added", "step", "inference", "wall-clock", "FLOPs", "parts at block"]
    every = dict.fromkeys(row["method"] for run in runs for row in run["rows"])
    return head, [_row(runs, method, tasks) for method in methods or every]


def _row(runs: Runs, method: str, tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    own = list(rows_of(runs, method).values())

    def mean(of: str) -> float:
        return statistics.fmean(row[of] for row in own)

    gain = "0" if method == "ST" else f"{mean('delta_m'):+.2f}"
    if len(own) > 1 and method != "ST":
        gain += f" ± {spread([row['delta_m'] for row in own]):.2f}"
    added, share = round(mean("parameters_added")), mean("parameters_added_percent")
    return [
        method if len(own) == len(runs) else f"{method} ({len(own)} seeds)",
        *(_figure(statistics.fmean(row["metrics"][task["name"]] for row in own)) for task in tasks),
        gain,
        *(against_plain(runs, method, "delta_m") if len(runs) > 1 else []),
        f"{added:,} ({share:.2f} %)" if added else "0",
        f"{mean('step_cost'):.2f} x",
        f"{mean('inference_cost'):.2f} x",
        f"{mean('wall_clock_ratio'):.2f} x",
        f"{mean('flops_ratio'):.2f} x",
        _parting(own),
    ]


def _parting(rows: Sequence[Mapping[str, Any]]) -> str:
    """The block where streams part; where seeds differ, each with how often."""
    places = Counter((row["streams_part_at"] or "-").rpartition("blocks.")[2] for row in rows)
    if len(places) == 1:
        return next(iter(places))
    return ", ".join(f"{place} ({times}x)" for place, times in sorted(places.items()))


def _figure(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def table(runs: Runs) -> Table:
    """The table for the terminal."""
    head, rows = cells(runs)
    seeds = f"{len(runs)} seeds; " if len(runs) > 1 else ""
    drawn = Table(title=f"{runs[0]['suite']}: {seeds}costs are relative to MT", title_justify="left", box=box.SIMPLE)
    for column, title in enumerate(head):
        short = title.replace(" ", "\n", 1) if column <= len(runs[0]["tasks"]) else title
        drawn.add_column(short, justify="right" if column else "left", style=None if column else "bold")
    for row in rows:
        drawn.add_row(*row)
    if chosen := choices(runs):
        drawn.caption, drawn.caption_justify = f"Chosen: {'; '.join(chosen)}.", "left"
    return drawn


def markdown(runs: Runs, methods: Sequence[str] | None = None) -> str:
    """The table as Markdown, of all rows or of some, and below it what was chosen where there is more than one way."""
    head, rows = cells(runs, methods)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    drawn = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    chosen = "".join(f"- {one}\n" for one in choices(runs))
    return f"{drawn}\n{chosen}" if chosen else drawn


def choices(runs: Runs) -> list[str]:
    """What was chosen where there is more than one way, and what could not be read; nothing of suites that are made here.

    >>> choices([{"choices": {"loss_weights": "invpt"}, "rows": [{"skipped": {"train": 2, "test": 0}}]}])
    ['loss_weights: invpt', 'skipped as unreadable: 2 train, 0 test images']
    """
    said = [f"{name}: {value}" for name, value in runs[0].get("choices", {}).items()]
    skipped = [row["skipped"] for run in runs for row in run["rows"] if "skipped" in row]
    if skipped:
        train, test = (max(of[split] for of in skipped) for split in ("train", "test"))
        said.append(f"skipped as unreadable: {train} train, {test} test images")
    return said
