"""Plans on a budget: against brute force over all plans, by properties, and on models whose FLOPs are counted."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_batches, task_losses, tiny_vit, torch_encoder_multitask
from reports import rates, report_of

import dtme
from dtme.plan import budget
from dtme.plan.budget import Step, find_steps, sum_resolved
from dtme.plan.cost import BlockFlops, ModelFlops, price
from dtme.plan.placement import Inserts, share_of

TASKS = tuple("abcdefghijk")


def made_up(tasks: int, blocks: int, seed: int = 0, **fields: Any) -> dtme.ConflictReport:
    """Rates and FLOPs drawn at random; the FLOPs are those of no model, and the more general for that."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.rand(2, blocks, tasks, tasks, generator=generator, dtype=torch.float64)
    both = (both + both.mT) / 2 * (1 - torch.eye(tasks))
    drawn = torch.randint(1, 40, (blocks, 6), generator=generator).tolist()
    flops = {
        f"blocks.{place}": BlockFlops(300 + 10 * one, shared, behind, (linear, quadratic), (update, 1))
        for place, (one, shared, behind, linear, quadratic, update) in enumerate(drawn)
    }
    given = {"tasks": TASKS[:tasks], "flops": ModelFlops(200, flops), **fields}
    return report_of(both[0], both[1], **given)


def score_and_price(report: dtme.ConflictReport, plan: dtme.Plan) -> tuple[float, float]:
    assert isinstance(report.flops, ModelFlops)
    return round(sum_resolved(report, plan), 9), price(plan, report.flops).ratio


def best_of(plans: Iterator[dtme.Plan], report: dtme.ConflictReport) -> list[tuple[float, float]]:
    """The (cost, resolved) of the plans that resolve more than any cheaper one, by looking at all."""
    looked_at = sorted({(cost, -score) for score, cost in (score_and_price(report, plan) for plan in plans)})
    front: list[tuple[float, float]] = []
    for cost, score in looked_at:
        if -score > (front[-1][1] if front else 0.0):
            front.append((cost, -score))
    return front


def found_by(report: dtme.ConflictReport, inserts: Inserts) -> list[tuple[float, float]]:
    steps = find_steps(report, inserts)
    for step in steps:
        assert (step.cost, round(step.resolved, 9)) == score_and_price(report, step.plan)[::-1]
    return [(step.cost, round(step.resolved, 9)) for step in steps]


def every_plan_of_modulators(report: dtme.ConflictReport, count: int) -> Iterator[dtme.Plan]:
    some = [c for size in range(len(report.tasks) + 1) for c in itertools.combinations(report.tasks, size)]
    for placed in itertools.product(some, repeat=len(report.blocks)):
        if sum(map(bool, placed)) <= count:
            yield dtme.Plan(report.tasks, dict(zip(report.blocks, placed, strict=True)))


def every_plan_by_the_rule(report: dtme.ConflictReport, inserts: Inserts) -> Iterator[dtme.Plan]:
    """The rule of `find_steps`, one plan at a time: inserts for all tasks that have parted, where they resolve most."""
    count = share_of(inserts.fraction, len(report.blocks))
    for way in itertools.product(range(len(report.blocks) + 1), repeat=len(report.tasks)):
        parted = [
            tuple(t for t, at in zip(report.tasks, way, strict=True) if at <= b) for b in range(len(report.blocks))
        ]
        if any(len(tasks) == len(report.tasks) - 1 for tasks in parted):
            continue  # the last to share a stream is alone in it
        orders = []
        for space in ("range", "null"):
            gain = {}
            for block, tasks in zip(report.blocks, parted, strict=True):
                alone = {"modulate": {block: tasks}} if space == "range" else {"expand": {block: tasks}}
                gain[block] = round(sum_resolved(report, dtme.Plan(report.tasks, **alone)), 9)
            latest_first = sorted(
                report.blocks, key=lambda block, gain=gain: (gain[block], report.blocks.index(block))
            )[::-1]
            orders.append([block for block in latest_first if gain[block] > 0])
        for m, e in itertools.product(range(count + 1), range(count + 1 if inserts.expansion else 1)):
            placed = [
                {block: parted[report.blocks.index(block)] for block in order[:chosen]}
                for order, chosen in zip(orders, (m, e), strict=True)
            ]
            yield dtme.Plan(
                report.tasks,
                placed[0] if inserts.modulation else {},
                placed[1],
                placed[0] if inserts.adaptation else {},
                tokens_per_task=inserts.tokens_per_task,
            )


@pytest.mark.parametrize(("tasks", "blocks", "fraction"), [(2, 4, 0.5), (3, 3, 0.7), (3, 3, 1.0), (4, 2, 0.5)])
def test_no_plan_of_modulators_at_all_is_better(tasks: int, blocks: int, fraction: float):
    for seed in range(3):
        report = made_up(tasks, blocks, seed)
        best = best_of(every_plan_of_modulators(report, share_of(fraction, blocks)), report)
        assert found_by(report, Inserts(fraction, expansion=False)) == best


@pytest.mark.parametrize(
    "inserts",
    [
        Inserts(0.7, tokens_per_task=2),
        Inserts(0.5, modulation=False),
        Inserts(0.5, adaptation=True),
        Inserts(0.7, modulation=False, expansion=False, adaptation=True),
    ],
)
def test_all_ways_of_parting_are_compared(inserts: Inserts):
    for tasks, blocks in ((2, 4), (3, 3)):
        report = made_up(tasks, blocks, seed=tasks)
        assert found_by(report, inserts) == best_of(every_plan_by_the_rule(report, inserts), report)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(1, 5), st.integers(0, 10**6), st.floats(0.1, 1.0), st.booleans())
def test_more_money_resolves_more_up_to_the_plan_without_a_budget(
    tasks: int, blocks: int, seed: int, fraction: float, adaptation: bool
):
    report = made_up(tasks, blocks, seed)
    steps = find_steps(report, Inserts(fraction, adaptation=adaptation))
    assert all(low.cost < high.cost and low.resolved < high.resolved for low, high in itertools.pairwise(steps))
    default = report.plan(fraction=fraction, adaptation=adaptation)
    score, cost = score_and_price(report, default)
    assert round(steps[-1].resolved, 9) == score
    assert steps[-1].cost <= cost
    assert score_and_price(report, report.plan(fraction=fraction, adaptation=adaptation, max_cost=cost))[0] == score
    for max_cost in (steps[0].cost, (steps[0].cost + cost) / 2, cost * 2):
        plan = report.plan(fraction=fraction, adaptation=adaptation, max_cost=max_cost)
        assert score_and_price(report, plan)[1] <= max_cost
        assert plan == report.plan(fraction=fraction, adaptation=adaptation, max_cost=max_cost)
        assert max(map(len, (plan.modulate, plan.expand))) <= share_of(fraction, blocks)


def test_parting_one_by_one_comes_close_and_ends_where_all_ways_end(monkeypatch: pytest.MonkeyPatch):
    report = made_up(4, 6)
    exact = find_steps(report, Inserts())
    monkeypatch.setattr(budget, "EXACT", 0)
    greedy = find_steps(report, Inserts())
    assert greedy[-1].resolved == pytest.approx(exact[-1].resolved, abs=1e-9)
    for step in greedy:
        best = max(other.resolved for other in exact if other.cost <= step.cost)
        assert step.resolved <= best + 1e-9
    share = [
        max((own.resolved for own in greedy if own.cost <= step.cost), default=0.0) / step.resolved for step in exact
    ]
    assert sum(share) / len(share) > 0.9


def test_eleven_tasks_part_one_by_one():
    report = made_up(11, 12)
    plan = report.plan(max_cost=2.0)
    score, cost = score_and_price(report, plan)
    assert cost <= 2.0
    assert score > 0.25 * score_and_price(report, report.plan())[0]


def test_of_plans_that_tie_the_later_parting_is_taken():
    blocks = {f"blocks.{place}": BlockFlops(100, task_tokens=(0, 0)) for place in range(4)}
    report = report_of(rates([0.3] * 4, 2), rates([0.2] * 4, 2), flops=ModelFlops(0, blocks))
    assert report.plan(max_cost=1.3).blocks == ("blocks.3",)
    assert report.plan(max_cost=1.5).blocks == ("blocks.2", "blocks.3")
    assert report.plan(max_cost=2.0).blocks == ("blocks.2", "blocks.3")  # as good as any earlier parting


def test_conflict_is_resolved_between_streams_of_which_one_has_an_insert():
    one, other = rates([0.1, 0.2]), rates([0.01, 0.02])
    one[0, 0, 1] = one[0, 1, 0] = 0.15
    one[1, 0, 2] = one[1, 2, 0] = 0.25
    report = report_of(one, other)
    assert sum_resolved(report, dtme.Plan(TASKS[:3])) == 0
    first = dtme.Plan(TASKS[:3], {"blocks.0": ("a",)})
    assert sum_resolved(report, first) == pytest.approx(0.15 + 0.1)  # a parts from b and c; none has an insert behind
    both = dtme.Plan(TASKS[:3], {"blocks.0": ("a",)}, {"blocks.1": ("b",)})
    assert sum_resolved(report, both) == pytest.approx(0.25 + 0.02 + 0.02)  # b from a and c, in the null space
    joint = dataclasses.replace(both, joint_tokens=True)
    assert sum_resolved(report, joint) == pytest.approx(0.25)  # tokens of all in one stream part nobody
    adapted = dtme.Plan(TASKS[:3], {"blocks.1": ("c",)}, adapt={"blocks.1": ("a",)})
    assert sum_resolved(report, adapted) == pytest.approx(0.2 + 0.25 + 0.2)
    with pytest.raises(ValueError, match=r"block 'head\.0' was not analysed"):
        sum_resolved(report, dtme.Plan(TASKS[:3], {"head.0": ("a",)}))


def test_pairs_that_were_never_compared_are_worth_nothing():
    report = made_up(3, 3)
    rate = report.range_rate.clone()
    rate[:, 0, 1] = rate[:, 1, 0] = math.nan
    unknown = dataclasses.replace(report, range_rate=rate)
    rate = rate.nan_to_num(0.0)
    assert found_by(unknown, Inserts()) == found_by(dataclasses.replace(report, range_rate=rate), Inserts())


def test_blocks_that_were_not_analysed_carry_streams_and_cost():
    report = made_up(2, 2)
    assert isinstance(report.flops, ModelFlops)
    early, late = report.flops.blocks.values()
    blocks = {"first": early, "blocks.0": early, "between": late, "blocks.1": late, "last": late}
    partly = dataclasses.replace(report, flops=ModelFlops(200, blocks))
    for step in find_steps(partly, Inserts()):
        assert step.cost == price(step.plan, ModelFlops(200, blocks)).ratio
        assert price(step.plan, ModelFlops(200, blocks)).streams["last"] == 2
    assert find_steps(partly, Inserts())[0].plan.blocks == ("blocks.1",)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_cost": 0.9}, "max_cost=0.9: give a multiple"),
        ({"max_cost": math.nan}, "max_cost=nan: give a multiple"),
        ({"max_cost": 1.5, "select": "random"}, "leave out select='random'"),
        ({"max_cost": 1.5, "pair_threshold": 0.5}, "pair_threshold=0.5"),
        ({"max_cost": 1.5, "fraction": 0.0}, "fraction=0.0"),
    ],
)
def test_options_that_do_not_go_with_a_budget_are_refused(options: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        made_up(2, 2).plan(**options)


def test_a_budget_too_small_is_told_the_least_that_helps():
    report = made_up(3, 4)
    least = math.ceil(find_steps(report, Inserts())[0].cost * 1e4) / 1e4
    with pytest.raises(ValueError, match=rf"max_cost=1\.0: .* The least that does costs {least:.4f} times .*blocks\.3"):
        report.plan(max_cost=1.0)
    assert report.plan(max_cost=least).blocks == ("blocks.3",)
    peace = report_of(rates([0.0, 0.0]), rates([0.0, 0.0]), flops=made_up(3, 2).flops)
    with pytest.raises(ValueError, match="no conflict was measured"):
        peace.plan(max_cost=3.0)


def test_blocks_that_refuse_task_tokens_are_named():
    report = made_up(2, 2)
    assert isinstance(report.flops, ModelFlops)
    tied = dataclasses.replace(
        report.flops.blocks["blocks.1"], task_tokens=None, refusals={"expand": "Windows. Or so."}
    )
    refusing = dataclasses.replace(
        report, flops=dataclasses.replace(report.flops, blocks={**report.flops.blocks, "blocks.1": tied})
    )
    with pytest.raises(ValueError, match=r"max_cost: block 'blocks\.1' cannot take .* Windows\. Or so\."):
        refusing.plan(max_cost=1.9)
    assert refusing.plan(max_cost=1.9, expansion=False).modulate


def test_a_file_keeps_the_flops_and_an_older_one_has_none(tmp_path: Any):
    report = made_up(2, 3)
    report.save(tmp_path / "report.json")
    again = dtme.ConflictReport.load(tmp_path / "report.json")
    assert again.flops == report.flops
    assert again.plan(max_cost=1.9) == report.plan(max_cost=1.9)
    text = (tmp_path / "report.json").read_text()
    (tmp_path / "older.json").write_text(text[: text.index(', "flops"')] + "}")
    older = dtme.ConflictReport.load(tmp_path / "older.json")
    assert older.plan() == report.plan()
    with pytest.raises(ValueError, match="none of an analysis that counted FLOPs"):
        older.plan(max_cost=1.9)


@pytest.mark.parametrize("made", [tiny_vit, lambda: torch_encoder_multitask(True)])
def test_on_a_model_the_plan_costs_what_it_may(made: Any):
    model = made()
    batches = make_batches(model, (4, 3))
    report = dtme.analyze(model, task_losses, batches)
    steps: list[Step] = find_steps(report, Inserts(adaptation=True))
    assert len(steps) > 3
    for max_cost in (1.3, 1.5, 2.2, 9.0):
        plan = report.plan(max_cost=max_cost, adaptation=True)
        cost = dtme.cost(model, plan, batches[0]["inputs"])
        assert cost.ratio <= max_cost
        assert any(step.plan == plan and step.cost == cost.ratio for step in steps)
    assert cost.ratio <= dtme.cost(model, report.plan(adaptation=True), batches[0]["inputs"]).ratio
