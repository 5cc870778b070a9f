"""Results as JSON lines: one line per seed and method, each with all that is needed to read it alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtme._files import parse_json, read_text, write_text

FORMAT = "dtme.row-of-table"
_NAMES: dict[str, type] = {"suite": str, "tasks": list, "seed": int, "method": str}
"""What every line has."""
_FIGURES: dict[str, type] = {
    "metrics": dict,
    "parameters_added": float,
    "parameters_added_percent": float,
    "step_cost": float,
    "inference_cost": float,
}
"""What tables read of it."""
_OF_ROWS = ("rows", "curves", "seconds", "notes", "format", "version")


def write_lines(path: Path, runs: Iterable[Mapping[str, Any]]) -> None:
    """Write every row of every seed, as `experiments.runs.collect.collect` gave them; curves and notes are left out."""
    lines = []
    for run in runs:
        shared = {name: value for name, value in run.items() if name not in _OF_ROWS}
        shared = {"format": FORMAT, "version": 1, **shared, "seed": run["settings"]["seed"]}
        lines += [json.dumps({**shared, **row}) for row in run["rows"]]
    write_text(path, "\n".join(lines) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The runs of a file, one per seed, with their rows.

    Raises:
        ValueError: A line is not one of these; names file and line.
    """
    runs: dict[int, dict[str, Any]] = {}
    for number, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        where = f"{path}, line {number}"
        line = _checked(parse_json(text, where), where)
        seed = line["seed"]
        shared = {name: line[name] for name in ("suite", "tasks", "choices") if name in line}
        run = runs.setdefault(seed, {**shared, "seed": seed, "rows": []})
        run["rows"].append(line)
    if not runs:
        raise ValueError(f"{path} holds no row of results: is the copy complete?")
    return list(runs.values())


def _checked(line: Any, where: str) -> dict[str, Any]:
    """A line that says whose it is, and whose figures are figures."""
    if not isinstance(line, dict) or line.get("format") != FORMAT:
        found = line.get("format") if isinstance(line, dict) else type(line).__name__
        raise ValueError(f"{where}: no row of results: format {found!r}, expected {FORMAT!r}.")
    wrong = [name for name, kind in _NAMES.items() if not _is_of(kind, line.get(name))]
    wrong += [name for name, kind in _FIGURES.items() if name in line and not _is_of(kind, line[name])]
    if wrong:
        raise ValueError(f"{where}: no row of results: {wrong[0]!r} is missing or {line.get(wrong[0])!r}.")
    names = [task.get("name") if isinstance(task, dict) else None for task in line["tasks"]]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{where}: no row of results: 'tasks' names {names!r}.")
    lacking = [name for name in names if "metrics" in line and not _is_of(float, line["metrics"].get(name))]
    if lacking:
        raise ValueError(f"{where}: no row of results: 'metrics' has no number for task {lacking[0]!r}.")
    return line


def _is_of(kind: type, value: Any) -> bool:
    """Whether a value is of a kind; a whole number is a number, and a truth is none."""
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def rows_of(runs: Sequence[Mapping[str, Any]], method: str) -> dict[int, Mapping[str, Any]]:
    """A method's row per seed."""
    return {
        run.get("seed", run.get("settings", {}).get("seed", 0)): row
        for run in runs
        for row in run["rows"]
        if row["method"] == method
    }
