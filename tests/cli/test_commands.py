"""From a file of one's own to its report, plan, price and comparison."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dtme
from dtme.cli import main
from dtme.plan.cost import price
from dtme.report.report import ConflictReport

Answered = Callable[..., Any]
Said = pytest.CaptureFixture[str]
BLOCKS = [f"trunk.layers.{place}" for place in range(3)]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands for the page of a report, which has tests of its own: notes what it is given."""
    given: list[dict[str, Any]] = []

    def to_html(report: Any, path: Path, plan: Any = None, results: Any = None) -> None:
        given.append({"report": report, "plan": plan, "results": results})
        Path(path).write_text("<html>", encoding="utf-8")

    monkeypatch.setattr(ConflictReport, "to_html", to_html, raising=False)
    return given


def test_analyze_writes_what_the_library_finds(mine: Path, answered: Answered, page: list[dict[str, Any]]):
    found = answered("analyze", "mine.py", "--html", "r.html", "--samples", "all")
    report = dtme.ConflictReport.load("report.json")
    assert found["tasks"] == ["depth", "semseg"] == list(report.tasks)
    assert found["samples"] == 24
    assert found["range_score"] == pytest.approx(dict(zip(BLOCKS, report.range_score().tolist(), strict=True)))
    assert found["even_weights"] == pytest.approx(report.even_weights())
    assert page[0]["report"].tasks == report.tasks
    assert Path("r.html").exists()
    assert {path.name for path in mine.parent.iterdir()} == {"mine.py", "report.json", "r.html"}  # no bytecode


def test_analyze_reads_no_more_samples_than_asked_for(mine: Path, answered: Answered):
    assert answered("analyze", "mine.py", "--samples", "6")["samples"] == 6


def test_a_readers_text_goes_to_standard_output_and_the_rest_beside(mine: Path, capsys: Said):
    assert main(["analyze", "mine.py"]) == 0
    said = capsys.readouterr()
    assert "Written: report.json" in said.out
    assert "printed by the user's code" not in said.out
    assert "printed by the user's code" in said.err
    assert "conflicts: 4 batches in" in said.err


def test_the_recommended_plan_comes_first_and_the_papers_by_name(mine: Path, answered: Answered, capsys: Said):
    answered("analyze", "mine.py")
    report = dtme.ConflictReport.load("report.json")
    found = answered("plan", "report.json", "--out", "plan.json")
    assert dtme.Plan.load("plan.json") == report.recommended()
    assert found["cost"] == price(report.recommended(), report.flops).ratio > 1
    assert found["even_weights"] == pytest.approx(report.even_weights())
    assert dtme.Plan.from_dict(answered("plan", "report.json", "--paper")["plan"]) == report.plan()
    copies = answered("plan", "report.json", "--rank", "none")["plan"]["copies"]
    assert copies == {block: list(tasks) for block, tasks in report.recommended(rank=None).copies.items()}
    dear = dtme.Plan.from_dict(answered("plan", "report.json", "--max-cost", "9")["plan"])
    assert dear == report.recommended(max_cost=9) != report.recommended()
    assert main(["plan", "report.json"]) == 0
    said = capsys.readouterr().out
    assert (
        said.index("Try them first")
        < said.index("The plan, recommended")
        < said.index(f"Inference of all tasks: {found['cost']:.2f} times")
    )


def test_a_plan_beyond_the_budget_is_a_no_and_wrong_options_are_usage(mine: Path, answered: Answered):
    answered("analyze", "mine.py")
    assert "max_cost=1.0001" in answered("plan", "report.json", "--max-cost", "1.0001", code=1)["error"]
    assert "--rank 4" in answered("plan", "report.json", "--paper", "--rank", "4", code=2)["error"]
    assert "expected the format 'dtme.plan'" in answered("cost", "mine.py", "report.json", code=2)["error"]


def test_cost_is_that_of_the_library(mine: Path, answered: Answered, capsys: Said):
    plan = dtme.Plan(("depth", "semseg"), modulate={BLOCKS[1]: ("depth", "semseg")})
    plan.save("plan.json")
    found = answered("cost", "mine.py", "plan.json", "--steps", "1")
    assert found["streams"] == {BLOCKS[0]: 1, BLOCKS[1]: 2, BLOCKS[2]: 2}
    assert found["added_parameters"] == plan.parameters(8) == 32
    assert found["ratio"] == pytest.approx(5 / 3, abs=0.02)  # one block of three runs once, two run twice
    assert found["step_seconds"] > 0
    assert answered("cost", "mine.py", "plan.json", "--steps", "0")["step_seconds"] is None
    assert main(["cost", "mine.py", "plan.json"]) == 0
    assert f"  {BLOCKS[2]}  2\n" in f"{capsys.readouterr().out}"


def report_of(rate: float, halfwidth: float, path: str) -> None:
    """A report of two tasks and one block, with this rate in both spaces."""
    rates, widths = (value * (1 - torch.eye(2)).unsqueeze(0) for value in (rate, halfwidth))
    pairing = (("", "shared"), ("shared", ""))
    ConflictReport(
        ("a", "b"), ("x.0",), (8,), (3,), rates, rates, widths, widths, 9, pairing, (0.0,), 100.0, 0.95
    ).save(path)  # fmt: skip


def test_compare_tells_what_fell_beyond_the_half_widths(answered: Answered):
    for name, rate, halfwidth in (("before", 0.5, 0.03), ("lower", 0.44, 0.04), ("near", 0.46, 0.04)):
        report_of(rate, halfwidth, f"{name}.json")
    found = answered("compare", "before.json", "lower.json")
    assert found["fell"] == ["x.0 (range)", "x.0 (null)"]
    assert found["blocks"]["x.0"]["range"]["half_width"] == pytest.approx(0.05)  # 3, 4, 5
    assert answered("compare", "before.json", "near.json", code=1)["fell"] == []
    assert answered("compare", "lower.json", "before.json", code=1)["rose"] == ["x.0 (range)", "x.0 (null)"]


def test_compare_refuses_other_tasks(mine: Path, answered: Answered):
    report_of(0.5, 0.1, "before.json")
    answered("analyze", "mine.py")
    assert "other tasks" in answered("compare", "before.json", "report.json", code=2)["error"]


def test_report_tells_plan_and_results_apart(answered: Answered, page: list[dict[str, Any]]):
    report_of(0.5, 0.1, "report.json")
    plan = dtme.Plan(("a", "b"), modulate={"x.0": ("a",)})
    plan.save("plan.json")
    Path("results.jsonl").write_text('{"row": "MT"}\n{"row": "ST"}\n', encoding="utf-8")
    assert answered("report", "report.json", "results.jsonl", "plan.json")["shows"] == ["report", "results", "plan"]
    assert page[0]["plan"] == plan
    assert page[0]["results"] == [{"row": "MT"}, {"row": "ST"}]
    assert answered("report", "report.json")["html"] == "report.html"
    assert "second plan" in answered("report", "report.json", "plan.json", "plan.json", code=2)["error"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("analyze", "mine.py", "--out", "away/report.json"), "there is no folder away"),
        (("analyze", "mine.py", "--out", "report.txt"), "ends in .json"),
        (("analyze", "mine.py", "--html", "folder.html"), "is a folder"),
        (("analyze", "other.py"), "is not there"),
        (("init", "mine.txt"), "ends in .py"),
        (("init", "mine.py"), "is there already"),
        (("report", "mine.py", "--out", "report.html"), "mine.py"),
    ],
)
def test_paths_are_checked_before_work_starts(mine: Path, answered: Answered, arguments: tuple[str, ...], words: str):
    Path("folder.html").mkdir()
    mine.write_text(f"raise RuntimeError('work has started')\n{mine.read_text()}")
    assert words in answered(*arguments, code=2)["error"]


@pytest.mark.parametrize("like", ["timm", "hf", "torch"])
def test_what_init_writes_runs_as_it_is(like: str, answered: Answered):
    assert answered("init", "own.py", "--like", like) == {"file": "own.py", "like": like}
    found = answered("analyze", "own.py", "--samples", "32")
    assert len(found["tasks"]) == 2
    assert answered("plan", "report.json", "--max-cost", "1.5", "--out", "plan.json")["kind"] == "recommended"
    assert 1 < answered("cost", "own.py", "plan.json", "--steps", "1")["ratio"] <= 1.5


def test_under_torchrun_each_process_reads_its_share(monkeypatch: pytest.MonkeyPatch):
    from dtme.cli.ranks import rank, share_of

    assert share_of([1, 2]) == [1, 2]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert rank() == 1
    share = share_of(range(5))
    assert (list(share), list(share)) == ([1, 3], [1, 3])
    once = share_of(iter(range(5)))
    assert (list(once), list(once)) == ([1, 3], [])
    assert "torch" in sys.modules
    assert json.dumps(main(["env"])) == "0"  # and the others print nothing


def test_two_processes_write_the_report_of_one(mine: Path, answered: Answered, tmp_path: Path):
    import os
    import subprocess

    alone = answered("analyze", "mine.py", "--samples", "all", "--out", "one.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "dtme", "analyze", "mine.py", "--samples", "all", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    together = json.loads(done.stdout)  # of one process
    assert together["samples"] == alone["samples"]
    assert together["range_score"] == pytest.approx(alone["range_score"])
    assert done.stderr.count("conflicts: ") == 1
