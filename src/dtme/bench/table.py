"""The table a benchmark run ends in, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table


def cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, as text."""
    arrows = {True: "↑", False: "↓"}
    tasks = results["tasks"]
    head = ["", *(f"{task['name']} {task['metric']} {arrows[task['higher_is_better']]}" for task in tasks)]
    head += ["Δm % ↑", "added", "step", "inference", "wall-clock", "parts at block"]
    rows = []
    for row in results["rows"]:
        added = (
            f"{row['parameters_added']:,} ({row['parameters_added_percent']:.2f} %)" if row["parameters_added"] else "0"
        )
        rows.append(
            [
                row["method"],
                *(_figure(row["metrics"][task["name"]]) for task in tasks),
                "0" if row["method"] == "ST" else f"{row['delta_m']:+.2f}",
                added,
                f"{row['step_cost']:.2f} x",
                f"{row['inference_cost']:.2f} x",
                f"{row['wall_clock_ratio']:.2f} x",
                (row["streams_part_at"] or "-").rpartition("blocks.")[2],
            ]
        )
    return head, rows


def _figure(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def table(results: Mapping[str, Any]) -> Table:
    """The table for the terminal."""
    head, rows = cells(results)
    drawn = Table(title=f"{results['suite']}: costs are relative to MT", title_justify="left", box=box.SIMPLE)
    for column, title in enumerate(head):
        short = title.replace(" ", "\n", 1) if column <= len(results["tasks"]) else title
        drawn.add_column(short, justify="right" if column else "left", style=None if column else "bold")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def markdown(results: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    head, rows = cells(results)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
