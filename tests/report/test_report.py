"""Reports: kept in files, printed, and turned into plans."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reports import TASKS, rates, report_of
from torch import Tensor

import dtme
from dtme.plan.cost import BlockFlops, ModelFlops, price


@pytest.fixture
def report() -> dtme.ConflictReport:
    return report_of(rates([0.1, 0.4, 0.2, 0.3, 0.25]), rates([0.5, 0.1, 0.2, 0.3, 0.4]))


def assert_same(one: dtme.ConflictReport, other: dtme.ConflictReport) -> None:
    for field in dataclasses.fields(one):
        first, second = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(first, second) if isinstance(first, Tensor) else first == second, field.name


def test_a_file_keeps_a_report(report: dtme.ConflictReport, tmp_path: Path):
    infinite = report.range_halfwidth.clone()
    infinite[0, 0, 1] = infinite[0, 1, 0] = math.inf
    kept = dataclasses.replace(report, range_halfwidth=infinite, undecided=("blocks.1",))
    kept.save(tmp_path / "report.json")
    assert_same(kept, dtme.ConflictReport.load(tmp_path / "report.json"))
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)  # strict JSON: no Infinity, no NaN


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.pop("blocks"), "missing or malformed .*'blocks'"),
        (lambda data: data.update(range_rate="high"), "missing or malformed"),
        (lambda data: data.update(null_rate=[[0.0]]), r"null_rate has shape \(1, 1\), expected \(5, 3, 3\)"),
        (lambda data: data.update(format="dtme.plan"), "holds 'dtme.plan', expected the format 'dtme.report'"),
        (lambda data: data.update(version="1"), "has version '1'"),
    ],
)
def test_a_malformed_file_is_refused(report: dtme.ConflictReport, tmp_path: Path, change: Any, says: str):
    path = tmp_path / "report.json"
    report.save(path)
    data = json.loads(path.read_text())
    change(data)
    data.pop("digest", None)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=says) as caught:
        dtme.ConflictReport.load(path)
    assert "report.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"format": "dtme.rep', b"\xff\xfe\x00"])
def test_a_corrupt_file_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"report\.json is (not readable JSON|no text file)"):
        dtme.ConflictReport.load(tmp_path / "report.json")


def test_the_table_names_blocks_ranks_scores_and_the_fiercest_pair(report: dtme.ConflictReport):
    rate = report.range_rate.clone()
    rate[1, 0, 2] = rate[1, 2, 0] = 0.9
    lines = str(dataclasses.replace(report, range_rate=rate, undecided=("blocks.3",))).splitlines()
    assert lines[2].split() == [
        "blocks.1",
        "3",
        "/",
        "8",
        "0.567",
        "±",
        "0.050",
        "-",
        "0.100",
        "±",
        "0.050",
        "-",
        "a",
        "×",
        "c",
        "0.900",
    ]
    assert len(lines) == 1 + 5 + 1 + 2
    held_against = dataclasses.replace(report, range_rate=rate, range_chance=rate / 2, null_chance=rate * math.nan)
    cells = str(held_against).splitlines()[2].split()
    assert cells[4:12] == ["0.567", "±", "0.050", "0.283", "0.100", "±", "0.050", "-"]
    assert str(held_against).splitlines()[-1].startswith("Chance: ")
    assert "3 tasks (a, b, c), 9 samples, variance ratio 100, half-widths at 95%." in lines[-2]
    assert lines[-1] == "Not settled by these samples: blocks.3."
    disjoint = dataclasses.replace(
        report, pairing=(("", "disjoint", "shared"), ("disjoint", "", "shared"), ("", "", ""))
    )
    assert "some pairs share no input" in str(disjoint)


SELECTIONS = {
    "conflict": (["blocks.1", "blocks.3", "blocks.4"], ["blocks.0", "blocks.3", "blocks.4"]),
    "reversed": (["blocks.0", "blocks.2", "blocks.4"], ["blocks.1", "blocks.2", "blocks.3"]),
    "swapped": (["blocks.0", "blocks.3", "blocks.4"], ["blocks.1", "blocks.3", "blocks.4"]),
}


@pytest.mark.parametrize("select", SELECTIONS)
def test_the_half_of_five_blocks_is_three(report: dtme.ConflictReport, select: Any):
    plan = report.plan(select=select)
    assert (list(plan.modulate), list(plan.expand)) == SELECTIONS[select]
    assert set(plan.modulate.values()) | set(plan.expand.values()) == {TASKS}


@given(st.integers(1, 9), st.sampled_from(["conflict", "random", "reversed", "swapped"]), st.floats(0.01, 1.0))
def test_every_mode_and_fraction_takes_its_share_of_distinct_blocks(depth: int, select: Any, fraction: float):
    report = report_of(rates(torch.rand(depth).tolist()), rates(torch.rand(depth).tolist()))
    plan = report.plan(fraction=fraction, select=select)
    wanted = max(1, min(depth, round(fraction * depth + 1e-9)))
    for placed in (plan.modulate, plan.expand):
        assert len(placed) in {wanted, math.floor(fraction * depth + 0.5)}
        assert list(placed) == [block for block in report.blocks if block in placed]


def test_one_block_gets_both():
    plan = report_of(rates([0.3]), rates([0.2])).plan(fraction=0.01)
    assert (plan.modulate, plan.expand) == ({"blocks.0": TASKS}, {"blocks.0": TASKS})


def test_blocks_that_tie_are_taken_from_the_end():
    plan = report_of(rates([0.3, 0.3, 0.3, 0.3]), rates([0.1, 0.2, 0.2, 0.1])).plan(fraction=0.25)
    assert (list(plan.modulate), list(plan.expand)) == (["blocks.3"], ["blocks.2"])


def test_random_blocks_follow_the_seed_and_differ_between_the_two(report: dtme.ConflictReport):
    drawn = [report.plan(select="random", fraction=0.4, seed=seed) for seed in range(20)]
    assert drawn == [report.plan(select="random", fraction=0.4, seed=seed) for seed in range(20)]
    assert len({tuple(plan.modulate) for plan in drawn}) > 3
    assert {block for plan in drawn for block in plan.modulate} == set(report.blocks)
    assert any(list(plan.modulate) != list(plan.expand) for plan in drawn)


def test_the_threshold_leaves_out_tasks_of_no_fierce_pair():
    fierce = rates([0.1, 0.1])
    fierce[1, 0, 2] = fierce[1, 2, 0] = 0.6
    report = report_of(fierce, rates([0.2, 0.2]))
    plan = report.plan(fraction=1.0, pair_threshold=0.6)
    assert (plan.modulate, plan.expand) == ({"blocks.1": ("a", "c")}, {})
    assert report.plan(fraction=1.0, pair_threshold=0.0).modulate == {"blocks.0": TASKS, "blocks.1": TASKS}


def test_options_reach_the_plan(report: dtme.ConflictReport):
    assert report.plan(expansion=False).expand == {}
    assert report.plan(modulation=False).modulate == {}
    plan = report.plan(tokens_per_task=3, modulator="batchnorm", adaptation=True)
    assert (plan.tokens_per_task, plan.modulator, plan.adapt) == (3, "batchnorm", plan.modulate)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fraction": 0}, "fraction=0: give a share"),
        ({"fraction": 1.01}, "fraction=1.01"),
        ({"fraction": math.nan}, "fraction=nan"),
        ({"pair_threshold": math.nan}, "pair_threshold=nan: give a rate, from 0 to 1"),
        ({"pair_threshold": 1.5}, "pair_threshold=1.5"),
        ({"select": "best"}, "select='best': choose"),
        ({"modulation": False, "expansion": False}, "the plan would be empty"),
        ({"tokens_per_task": 0}, "tokens_per_task=0"),
        ({"modulator": "none"}, "modulator='none'"),
    ],
)
def test_options_out_of_range_are_refused(report: dtme.ConflictReport, options: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        report.plan(**options)


def test_the_recommended_plan_takes_as_many_last_blocks_as_the_budget_allows(report: dtme.ConflictReport):
    flops = ModelFlops(100, {name: BlockFlops(100, updates=(2, 0)) for name in report.blocks})
    priced = dataclasses.replace(report, flops=flops)
    tasks = len(report.tasks)
    for max_cost in (1.5, 2.0, 2.5, 9.0):
        plan = priced.recommended(max_cost=max_cost)
        count = len(plan.adapt)
        assert tuple(plan.adapt) == report.blocks[-count:]
        assert all(given == report.tasks for given in plan.adapt.values())
        assert (plan.modulate, plan.expand, plan.rank) == ({}, {}, 12)

        def cost(blocks: int) -> float:
            return (600 + blocks * ((tasks - 1) * 100 + tasks * 12 * 2)) / 600

        assert cost(count) <= max_cost
        assert count == 5 or cost(count + 1) > max_cost


@pytest.mark.parametrize("rank", [4, None])
def test_a_budget_takes_recommended_streams_forward_part_by_part(report: dtme.ConflictReport, rank: int | None):
    def block(name: str) -> BlockFlops:
        return BlockFlops(100, updates=(0, 0), parts={f"{name}.mlp": BlockFlops(60, updates=(0, 0), last=True)})

    flops = ModelFlops(0, {name: block(name) for name in report.blocks})
    priced = dataclasses.replace(report, flops=flops)
    last, streams = report.blocks[-1], len(report.tasks) - 1
    found = []
    for repeated in (60, 100, 160, 200, 260):  # FLOPs of what each further stream repeats
        plan = priced.recommended(max_cost=1 + streams * repeated / flops.plain + 1e-9, rank=rank)
        assert plan.rank == (4 if rank else dtme.Plan(report.tasks).rank)
        assert price(plan, flops).ratio == pytest.approx(1 + streams * repeated / flops.plain)
        assert set(plan.copies if rank is None else plan.adapt) == set(plan.blocks)
        found.append(plan.blocks)
    third, second = report.blocks[-3:-1]
    assert found == [(f"{last}.mlp",), (last,), (f"{second}.mlp", last), (second, last), (f"{third}.mlp", second, last)]
    assert priced.recommended(rank=rank).blocks == (f"{last}.mlp",)


def test_recommended_updates_go_as_far_forward_as_they_can_be_made(report: dtme.ConflictReport):
    *others, last = report.blocks
    flops = ModelFlops(0, {**{name: BlockFlops(100) for name in others}, last: BlockFlops(100, updates=(0, 0))})
    priced = dataclasses.replace(report, flops=flops)
    assert priced.recommended(max_cost=9.0).blocks == (last,)
    assert priced.recommended(max_cost=9.0, rank=None).blocks == report.blocks


def test_a_recommendation_that_no_budget_allows_names_the_least_cost(report: dtme.ConflictReport):
    flops = ModelFlops(100, {name: BlockFlops(100, updates=(2, 0)) for name in report.blocks})
    with pytest.raises(ValueError, match=r"max_cost=1\.1: .*costs 1\.4534 times .*blocks\.4"):
        dataclasses.replace(report, flops=flops).recommended(max_cost=1.1)
    with pytest.raises(ValueError, match="holds no FLOPs"):
        report.recommended()
