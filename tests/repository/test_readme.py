"""The README is short, runs as it is printed, and its table says what the files of `results/` say."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean

import pytest

import dtme
from experiments.runner.jsonl import read_lines, rows_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = {
    "plain multi-task training (MT)": "MT",
    "MT with even weights": "MT, even gradients",
    "`recommended` with even weights": "Adapt r12 last MLP, even gradients",
    "`faithful`, the paper's plan (TM+TE)": "TM+TE",
}
"""Rows of its table, and what the results call them."""


def test_it_is_short():
    assert len(README.split()) < 1200


def test_what_it_calls_exists():
    called = set(re.findall(r"dtme\.(\w+)\(", README))
    assert called >= {"analyze", "parameter_groups", "expand", "save_pretrained"}
    assert all(hasattr(dtme, name) for name in called)


def test_its_example_runs_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, object] = {"__name__": "readme"}
    exec(code, scope)
    assert (tmp_path / "runs" / "mine" / "model.safetensors").is_file()
    assert "<h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    plan = dtme.plan_of(scope["model"])  # pyright: ignore[reportArgumentType]
    assert plan is not None
    assert list(plan.adapt) == ["trunk.layers.5.linear1"] or len(plan.adapt) == 1


@pytest.mark.parametrize("name", ROWS)
def test_its_table_says_what_was_measured(name: str):
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {name} |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    times = re.findall(r"([0-9.]+) x", cells[4])
    for place, suite in enumerate(("nuclei", "scenes")):
        runs = read_lines(ROOT / "results" / f"{suite}-plateau.jsonl")
        rows = list(rows_of(runs, ROWS[name]).values())
        assert len(rows) == 5
        assert float(cells[1 + place]) == pytest.approx(fmean(row["delta_m"] for row in rows), abs=0.005)
        told = times[min(place, len(times) - 1)]
        decimals = len(told.partition(".")[2])
        assert float(told) == pytest.approx(fmean(row["wall_clock_ratio"] for row in rows), abs=0.51 * 10**-decimals)


def test_its_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
