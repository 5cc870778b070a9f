"""What an earlier version saved of an analysis is read by this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden.make import HERE

import dtme
from dtme.plan.cost import ModelFlops, price

GOLDEN = HERE / "reports"
GLUE = sorted((Path(__file__).parents[2] / "results" / "glue-conflicts").glob("*.json"))


def test_a_report_of_0_1_0_gives_the_plans_it_gave_then():
    """Its FLOPs were counted block by block in runs of their own, and not told by arithmetic."""
    report = dtme.ConflictReport.load(GOLDEN / "0.1.0.json")
    assert isinstance(report.flops, ModelFlops)
    last = report.flops.blocks["trunk.blocks.3"]
    assert (last.stream, last.task_tokens, last.updates, last.late) == (
        245888, (16640, 128), (17408, 1024), "trunk.blocks.3.mlp",
    )  # fmt: skip
    assert report.recommended().adapt == {"trunk.blocks.3.mlp": report.tasks}
    at = {f"trunk.blocks.{place}": ("edges",) for place in (2, 3)}
    assert report.plan(max_cost=1.5) == dtme.Plan(report.tasks, at, at)
    assert price(report.plan(max_cost=1.5), report.flops).ratio == pytest.approx(1.44, abs=0.005)
    assert str(report).startswith("block                rank     range score  chance")


def test_what_is_saved_again_is_the_same(tmp_path: Path):
    report = dtme.ConflictReport.load(GOLDEN / "0.1.0.json")
    report.save(tmp_path / "again.json")
    again, before = (json.loads(path.read_text()) for path in (tmp_path / "again.json", GOLDEN / "0.1.0.json"))
    assert before.items() <= again.items()


@pytest.mark.parametrize("path", GLUE, ids=lambda path: path.stem)
def test_committed_reports_of_glue_are_read_and_planned_by(path: Path):
    report = dtme.ConflictReport.load(path)
    plan = report.plan(max_cost=2.0)
    assert isinstance(report.flops, ModelFlops)
    assert 1 < price(plan, report.flops).ratio <= 2
    assert torch.equal(report.range_rate, report.range_rate.mT)
