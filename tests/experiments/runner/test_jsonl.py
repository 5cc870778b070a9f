"""Lines of results: what is no row is refused by file and line, whatever it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.runner.jsonl import read_lines

ROOT = Path(__file__).parents[3]
ROW: dict[str, Any] = json.loads(
    (ROOT / "results" / "scenes-settled.jsonl").read_text(encoding="utf-8").splitlines()[0]
)


@pytest.mark.parametrize("path", sorted((ROOT / "results").rglob("*.jsonl")), ids=lambda path: path.stem)
def test_every_committed_file_is_read(path: Path):
    assert sum(len(run["rows"]) for run in read_lines(path)) == len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[" * 100_000, "is not readable JSON"),
        ("5", "format 'int'"),
        ("{}", "format None"),
        (json.dumps({name: value for name, value in ROW.items() if name != "tasks"}), "'tasks' is missing"),
        (json.dumps(ROW | {"seed": [1]}), "'seed' is missing or"),
        (json.dumps(ROW | {"seed": True}), "'seed' is missing or"),
        (json.dumps(ROW | {"tasks": [5]}), "'tasks' names"),
        (json.dumps(ROW | {"tasks": [{"name": []}]}), "'tasks' names"),
        (json.dumps(ROW | {"metrics": {}}), "no number for task"),
        (json.dumps(ROW | {"metrics": 5}), "'metrics' is missing or 5"),
        (json.dumps(ROW | {"step_cost": "much"}), "'step_cost' is missing or 'much'"),
        (r'{"format": "\ud800"}', "half of a character"),
    ],
)
def test_what_is_no_row_is_named_by_file_and_line(line: str, says: str, tmp_path: Path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"results\.jsonl, line 2.*{says}"):
        read_lines(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_what_is_no_file_of_rows_is_named(content: bytes, tmp_path: Path):
    (tmp_path / "results.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.jsonl (holds no row|is no text)"):
        read_lines(tmp_path / "results.jsonl")
