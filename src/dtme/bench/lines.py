"""Results as JSON lines: one line per seed and method, each with all that is needed to read it alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtme._files import write_text

FORMAT = "dtme.row-of-table"
_OF_ROWS = ("rows", "curves", "seconds", "notes", "format", "version")


def write_lines(path: Path, runs: Iterable[Mapping[str, Any]]) -> None:
    """Write every row of every seed, as `dtme.bench.results.collect` gave them; curves and notes are left out."""
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
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            seed, known = line["seed"], line["format"] == FORMAT
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: no row of results ({error}).") from error
        if not known:
            raise ValueError(f"{path}, line {number}: format {line['format']!r}, expected {FORMAT!r}.")
        run = runs.setdefault(seed, {"suite": line["suite"], "tasks": line["tasks"], "seed": seed, "rows": []})
        run["rows"].append(line)
    return list(runs.values())


def rows_of(runs: Sequence[Mapping[str, Any]], method: str) -> dict[int, Mapping[str, Any]]:
    """A method's row per seed."""
    return {
        run.get("seed", run.get("settings", {}).get("seed", 0)): row
        for run in runs
        for row in run["rows"]
        if row["method"] == method
    }
