"""What rows cost from first to last, from prices written down by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_dense import TINY

from experiments.dense.branch_point import BranchPoint
from experiments.dense.experiment import TUNED_WEIGHTS, Bench
from experiments.runner.resume import write_state
from experiments.runs.by_name import method_of
from experiments.runs.schedule import jobs_of
from experiments.runs.total_cost import counting, paid, steps_of

RECIPE = replace(TINY, steps=100, expand_at=0, analysis_batches=8)
STEPS = {"MT": 1.0, "TM+TE": 3.0, "Recon": 2.0, counting("Recon"): 4.0, "TM+TE, 1/3": 2.5, "TM+TE in two rounds": 3.0}
FIRST = BranchPoint()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Steps at these prices in time, and at half of them in FLOPs; an analysis of 6 steps, a later one of 12."""
    bench = Bench("scenes", RECIPE, tmp_path)
    costs = {name: {"step": price, "step_flops": price / 2} for name, price in STEPS.items()}
    bench.write_row("cost", {"costs": costs, "added": {}, "analysis_of_a_batch": 0.25})
    bench.write_row(FIRST.name, {"analysis_seconds": 1.0, "analysis_steps": 6.0})
    bench.write_row(method_of("TM+TE in two rounds").branch.name, {"analysis_seconds": 2.0})
    return bench


@pytest.mark.parametrize(
    ("method", "time", "flops"),
    [
        ("MT", 100, 50),
        ("TM+TE", 6 + 300, 8 * 0.25 + 150),
        ("Recon", 25 * 4 + 200, 25 * 2 + 100),  # it counts in a quarter of the steps, and trains anew
        ("TM+TE in two rounds", 6 + 50 * 2.5 + 12 + 50 * 3, 2 + 50 * 1.25 + 2 + 50 * 1.5),
    ],
)
def test_a_row_pays_for_all_that_leads_to_it(bench: Bench, method: str, time: float, flops: float):
    assert paid(bench, method_of(method), 100, "time") == pytest.approx(time)
    assert paid(bench, method_of(method), 100, "FLOPs") == pytest.approx(flops)


def test_longer_training_lasts_as_long_as_what_it_is_held_against(bench: Bench):
    assert steps_of(bench, method_of("MT as long as TM+TE")) == 306
    assert steps_of(bench, method_of("MT FLOPs of TM+TE")) == 152
    assert steps_of(bench, method_of("MT 2x")) == 200


def test_plain_steps_before_a_plan_are_paid_as_such(bench: Bench):
    late = replace(bench, recipe=replace(RECIPE, expand_at=40))
    assert paid(late, method_of("TM+TE"), 100, "time") == pytest.approx(40 + 6 + 60 * 3)


def test_even_weights_pay_for_the_analysis(bench: Bench):
    prices = bench.read_row("cost")["costs"]
    bench.write_row("cost", {"costs": {**prices, "MT, even gradients": prices["MT"]}, "analysis_of_a_batch": 0.25})
    assert paid(bench, method_of("MT, even gradients"), 100, "time") == pytest.approx(106)


def test_what_branches_off_a_row_of_even_weights_pays_for_their_analysis_once(bench: Bench):
    late = method_of("own last 1, rate 3, 50%, even gradients")
    costs = {**bench.read_row("cost")["costs"], late.branch.of: {"step": 1.0, "step_flops": 0.5}}
    costs[late.name] = {"step": 1.5, "step_flops": 0.75}
    bench.write_row("cost", {"costs": costs, "added": {}, "analysis_of_a_batch": 0.25})
    assert paid(bench, late, 100, "time") == pytest.approx(6 + 50 + 50 * 1.5)
    assert paid(bench, late, 100, "FLOPs") == pytest.approx(2 + 25 + 50 * 0.75)


def names(bench: Bench, methods: list[str]) -> set[str]:
    write_state(bench.out / "start.pt", {"step": 0})
    return {job.name for job in jobs_of(bench, methods) if not job.name.startswith("scenes, ")}


def test_rows_trained_with_other_weights_than_now_are_trained_again(bench: Bench):
    method = "MT, tuned weights"
    bench.write_row(method, {"weights": TUNED_WEIGHTS["scenes"]})
    assert method not in names(bench, [method])
    path = bench.path_of(method, "json")
    kept = json.loads(path.read_text())
    kept.pop("digest")
    path.write_text(json.dumps({**kept, "weights": {**TUNED_WEIGHTS["scenes"], "depth": 2.0}}))
    assert method in names(bench, [method])


def test_prices_that_lack_a_part_are_taken_anew_with_nothing_beside_them(bench: Bench):
    costs = bench.read_row("cost")["costs"]
    assert "cost" not in names(bench, ["MT"])
    bench.write_row("cost", {"costs": costs})
    (job,) = (job for job in jobs_of(bench, ["MT"]) if job.name == "cost")
    assert job.alone


def test_a_wider_model_begins_with_a_start_that_is_trained_once(bench: Bench):
    jobs = {job.name: job for job in jobs_of(bench, ["MT wider, as TM+TE"])}
    own = "start of MT wider, as TM+TE"
    assert own in jobs
    assert jobs["MT wider, as TM+TE"].after == (own,)
    assert own in jobs["cost"].after
