"""The table a benchmark run ends in, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, as text."""
    arrows = {True: "↑", False: "↓"}
    tasks = results["tasks"]
    head = ["", *(f"{task['name']} {task['metric']} {arrows[task['higher_is_better']]}" for task in tasks)]
    head += ["Δm % ↑", "added", "step", "inference", "wall-clock", "streams part at"]
    rows = []
    for row in results["rows"]:
        added = (
            f"{row['parameters_added']:,} ({row['parameters_added_percent']:.2f} %)" if row["parameters_added"] else "0"
        )
        rows.append(
            [
                row["method"],
                *(
                    f"{row['metrics'][task['name']]:.3g}"
                    if row["metrics"][task["name"]] < 1
                    else f"{row['metrics'][task['name']]:.2f}"
                    for task in tasks
                ),
                "0" if row["method"] == "ST" else f"{row['delta_m']:+.2f}",
                added,
                f"{row['step_cost']:.2f} x",
                f"{row['inference_cost']:.2f} x",
                f"{row['wall_clock_ratio']:.2f} x",
                row["streams_part_at"] or "-",
            ]
        )
    return head, rows


def table(results: Mapping[str, Any]) -> Table:
    """The table for the terminal."""
    head, rows = cells(results)
    drawn = Table(title=f"{results['suite']}: costs are relative to MT", title_justify="left")
    for column, title in enumerate(head):
        drawn.add_column(title, justify="left" if column == 0 else "right", style="bold" if column == 0 else None)
    for row in rows:
        drawn.add_row(*row)
    return drawn


def markdown(results: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    head, rows = cells(results)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
