"""Ablations: one thing varied, everything else as in the table; their figures; what they need of the rows."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import in_turn
import pytest
import torch
from safetensors.torch import load_file
from tiny_dense import TINY

from experiments import cli
from experiments.ablations import ABLATIONS, ablation_of
from experiments.commands import options
from experiments.dense.branch_point import BranchPoint
from experiments.dense.experiment import Bench
from experiments.dense.methods import METHODS
from experiments.figures.ablation_arms import changes, gains
from experiments.methods.gradient_cosines import CosineLog
from experiments.runner.jsonl import read_lines, rows_of
from experiments.runner.resume import read_state
from experiments.runs.by_name import every_method, method_of
from experiments.runs.rows import plan_of_method, run_of

RECIPE = replace(TINY, depth=6, pretrain_steps=4, steps=8)


SEEDS, PAIRED = (0, 1), ("trunk", "conflict")

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Path:
    """Several ablations in one folder, two seeds where seeds are paired; the rows they share are trained once."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(options.REGIMES, "plateau", RECIPE)
        patch.setattr(cli.jobs, "run", in_turn.run)
        for name in (
            "trunk",
            "analysis",
            "rounds",
            "moment",
            "variance-ratio",
            "position",
            "conflict",
            "cosines",
            "copies-moment",
            "even-copies",
        ):
            command = ["ablate", name, "scenes", "--seeds", *map(str, SEEDS[: 1 + (name in PAIRED)]), "--out", str(out)]
            patch.setattr(sys, "argv", ["dtme", *command])
            cli.main()
    return out


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(Bench("scenes", RECIPE, folder / "seed-0").path_of(name, "safetensors"))


def test_every_name_means_one_method():
    methods = [*METHODS, *(method for ablation in ABLATIONS for _, method in ablation.arms)]
    by_name = {method.name: method for method in methods}
    assert all(by_name[method.name] is method or by_name[method.name] == method for method in methods)
    assert [method.name for method in every_method()][: len(METHODS)] == [method.name for method in METHODS]
    assert {method.name for method in every_method()} == by_name.keys()
    files = [Bench("scenes", RECIPE, Path()).path_of(name, "json") for name in by_name]
    assert len(set(files)) == len(files)


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda ablation: ablation.name)
def test_an_arm_is_labelled_and_differs_from_the_others(ablation):
    labels = [label for label, _ in ablation.arms]
    assert len(set(labels)) == len(labels) > 1
    assert len({method.name for _, method in ablation.arms}) == len(labels)


def test_an_unknown_ablation_lists_all():
    with pytest.raises(ValueError, match="'ranks': choose from fraction"):
        ablation_of("ranks")


@pytest.mark.parametrize(
    "name", ["trunk", "analysis", "rounds", "moment", "variance-ratio", "position", "conflict", "cosines"]
)
def test_each_leaves_a_figure_and_its_lines(folder: Path, name: str):
    assert "<svg" in (folder / f"ablation-{name}.svg").read_text(encoding="utf-8")
    runs = read_lines(folder / f"ablation-{name}.jsonl")
    assert [run["seed"] for run in runs] == [*SEEDS[: 1 + (name in PAIRED)]]
    rows = {row["method"] for row in runs[0]["rows"]}
    assert rows == {"ST", "MT", *(method.name for _, method in ablation_of(name).arms)}


def test_a_probe_tells_how_scores_rank_the_gains_of_single_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(options.REGIMES, "plateau", RECIPE)
    monkeypatch.setattr(cli.jobs, "run", in_turn.run)
    monkeypatch.setattr(sys, "argv", ["dtme", "probe", "scenes", "--seeds", "0", "--out", str(folder)])
    cli.main()
    found = json.loads((folder / "probe.json").read_text(encoding="utf-8"))["correlations"]
    assert set(found) == {"low-rank updates", "modulators"}
    runs = read_lines(folder / "probe.jsonl")
    plain = rows_of(runs, "MT")[0]["delta_m"]
    gains = [rows_of(runs, f"adapt block {place}")[0]["delta_m"] - plain for place in range(6)]
    ranks = torch.tensor(gains).argsort().argsort().double()
    by_depth = torch.corrcoef(torch.stack([ranks, torch.arange(6.0).double()]))[0, 1]
    assert found["low-rank updates"]["depth"] == pytest.approx(float(by_depth))
    assert "<svg" in (folder / "probe.svg").read_text(encoding="utf-8")


def test_a_frozen_trunk_stays_and_all_else_moves(folder: Path):
    start = read_state(BranchPoint().start(Bench("scenes", RECIPE, folder / "seed-0")))["model"]
    for name in ("MT, frozen", "TM+TE, frozen"):
        after = weights(folder, name)
        moved = {key for key in start if not torch.equal(start[key], after[key])}
        assert moved
        assert not any(key.startswith("trunk.") for key in moved)
    inserts = {key: value for key, value in weights(folder, "TM+TE, frozen").items() if key.endswith("dtme.scale")}
    assert inserts
    assert all(bool((value != 0).any()) for value in inserts.values())


def test_modulators_behind_norms_part_streams_at_the_block_around_them(folder: Path):
    rows = rows_of(read_lines(folder / "ablation-position.jsonl"), "TM behind norms")
    assert {row["streams_part_at"] for row in rows.values()} == {"trunk.blocks.3"}
    scales = [key for key in weights(folder, "TM behind norms") if key.endswith("dtme.scale")]
    assert len(scales) == 6  # attention and MLP of the last three blocks


def test_a_later_moment_is_plain_training_before(folder: Path):
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    point = method_of("TM+TE, 50 %").branch
    assert point.step(RECIPE) == 4
    assert read_state(point.start(bench))["step"] == 4
    assert point.report(bench) != BranchPoint().report(bench)
    assert not torch.equal(point.measured(bench).range_rate, BranchPoint().measured(bench).range_rate)
    row = rows_of(read_lines(folder / "ablation-moment.jsonl"), "TM+TE, 50 %")[0]
    whole = rows_of(read_lines(folder / "ablation-moment.jsonl"), "TM+TE")[0]
    trained, longer = (own["wall_clock_ratio"] - own["analysis_share"] for own in (row, whole))
    assert trained == pytest.approx((4 + (RECIPE.steps - 4) * row["step_cost"]) / RECIPE.steps)
    assert longer == pytest.approx(whole["step_cost"])


def test_copies_may_come_later_and_learn_faster(folder: Path):
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    run = run_of(bench, bench.load(), method_of("own last 2, rate 3, 40%"))
    assert run.step == 3  # of 8
    own = {id(parameter) for _, parameter in run.model.added_parameters()}
    rates = {group["rate"] for group in run.optimizer.param_groups if own.issuperset(map(id, group["params"]))}
    assert rates == {RECIPE.low_rank_rate} == {3.0}
    results = read_lines(folder / "ablation-copies-moment.jsonl")
    late, whole = (rows_of(results, f"own last 2, rate 3, {share}")[0] for share in ("40%", "0%"))
    assert late["step_flops"] == whole["step_flops"]
    assert late["flops_ratio"] < whole["flops_ratio"]
    assert late["analysis_share"] == 0  # copies need none, though one is made at every branch point


def test_late_copies_beside_even_weights_go_on_from_training_with_them(folder: Path):
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    late, plain = method_of("own last 1, rate 3, 50%, even gradients"), method_of("MT, even gradients")
    run = run_of(bench, bench.load(), late)
    assert run.step == 4  # of 8
    assert [task.weight for task in run.workload.tasks] == [
        task.weight for task in run_of(bench, bench.load(), plain).workload.tasks
    ]
    halfway = read_state(late.branch.start(bench))["model"]
    at_first = read_state(BranchPoint().start(bench))["model"]
    begun = next(weight for name, weight in run.model.named_parameters() if name.endswith("trunk.pos_embed"))
    assert torch.equal(begun, halfway["trunk.pos_embed"])
    assert not torch.equal(begun, at_first["trunk.pos_embed"])
    found = read_lines(folder / "ablation-even-copies.jsonl")
    shares = {rows_of(found, method.name)[0]["analysis_share"] for method in (late, plain)}
    assert len(shares) == 1  # one analysis, however many rows follow from it


def test_another_variance_ratio_divides_the_space_elsewhere(folder: Path):
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    ranks = {r: BranchPoint(variance_ratio=r).measured(bench).range_rank for r in (1.0, 1000.0)}
    assert sum(ranks[1.0]) < sum(ranks[1000.0])


def test_an_analysis_may_read_more_or_less_and_its_own_time_is_counted(folder: Path):
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    read = {reading: BranchPoint(reading=reading).measured(bench).samples for reading in (0.25, 1.0, 4.0)}
    assert read == {0.25: 4, 1.0: 8, 4.0: 32}
    first, own = (bench.read_row(BranchPoint(reading=reading).name) for reading in (1.0, 4.0))
    steps = first["analysis_steps"] * own["analysis_seconds"] / first["analysis_seconds"]
    row = rows_of(read_lines(folder / "ablation-analysis.jsonl"), "TM+TE, 4 x")[0]
    assert row["analysis_share"] == pytest.approx(steps / RECIPE.steps)
    assert row["wall_clock_ratio"] == pytest.approx(row["analysis_share"] + row["step_cost"])
    plain = rows_of(read_lines(folder / "ablation-analysis.jsonl"), "MT")[0]
    assert plain["analysis_share"] == 0
    with pytest.raises(ValueError, match="reading=0"):
        BranchPoint(reading=0)


def test_a_second_round_goes_on_with_all_that_the_first_one_had(folder: Path):
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    first, second = method_of("TM+TE, 1/3"), method_of("TM+TE in two rounds")
    plans = {method.name: plan_of_method(bench, method.name) for method in (first, second)}
    before, after = plans[first.name], plans[second.name]
    assert before is not None
    assert after is not None
    assert (len(before.modulate), len(after.modulate), len(before.expand), len(after.expand)) == (2, 3, 2, 3)
    assert set(before.modulate) < set(after.modulate)
    assert set(before.expand) < set(after.expand)
    state = read_state(second.branch.start(bench))
    assert state["step"] == 4
    run = run_of(bench, bench.load(), second)
    assert run.step == 4
    own = run.model.state_dict()
    assert set(state["model"]) < set(own)
    assert all(torch.equal(own[name], weight) for name, weight in state["model"].items())
    momenta = {name: run.optimizer.state.get(weight, {}) for name, weight in run.model.named_parameters()}
    assert all((name in state["model"]) == ("exp_avg" in kept) for name, kept in momenta.items())
    assert {int(kept["step"]) for kept in momenta.values() if kept} == {4}


def test_looking_at_gradients_leaves_training_as_it_is(folder: Path):
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    for name in ("MT", "TM+TE"):
        watched, plain = weights(folder, f"{name}, watched"), weights(folder, name)
        if name == "MT":  # what a plan draws at random depends on the row's name
            assert all(torch.allclose(watched[key].double(), plain[key].double(), atol=1e-5) for key in plain)
        looks = bench.read_row(f"{name}, watched")["cosines"]
        assert len(looks) == RECIPE.steps
        assert len(looks[0]) == 6
        assert all(-1 <= cosine <= 1 for cosine in looks[0])


def test_what_was_noted_survives_an_interruption():
    log, again = CosineLog(), CosineLog()
    log.cosines = torch.tensor([[0.5, -0.5]])
    log.step += 3
    again.load_state_dict(log.state_dict())
    assert torch.equal(again.cosines, log.cosines)
    assert int(again.step) == 3


def test_gains_are_paired_and_the_tables_own_arm_is_marked(folder: Path):
    runs = read_lines(folder / "ablation-trunk.jsonl")
    found = {arm.label: arm for arm in gains(ablation_of("trunk"), runs)}
    assert found["MT"].mean == 0
    assert found["TM+TE"].own
    assert not found["TM+TE, frozen"].own
    differences = [rows_of(runs, "TM+TE")[seed]["delta_m"] - rows_of(runs, "MT")[seed]["delta_m"] for seed in (0, 1)]
    assert found["TM+TE"].mean == pytest.approx(sum(differences) / 2)
    costs = [row["step_cost"] for row in rows_of(runs, "TM+TE, frozen").values()]
    assert found["TM+TE, frozen"].cost == f"{sum(costs) / 2:.2f} x"


def test_changes_of_conflict_are_against_the_same_seed_before(folder: Path):
    runs = read_lines(folder / "ablation-conflict.jsonl")
    found = changes(ablation_of("conflict"), runs)
    rows = [rows_of(runs, "MT")[run["seed"]] for run in runs]
    own = [row["conflict"]["range"] - row["conflict_before"]["range"] for row in rows]
    measured = [BranchPoint().measured(Bench("scenes", RECIPE, folder / f"seed-{seed}")) for seed in (0, 1)]
    before = [row["conflict_before"]["range"] for row in rows]
    assert before == pytest.approx([float(report.range_score().mean()) for report in measured])
    assert found["MT"]["range"].mean == pytest.approx(sum(own) / 2)
    assert set(found["TM+TE"]) == {"range", "null"}


def test_settings_of_one_row_leave_the_others(folder: Path):
    methods = [method_of("TM+TE"), method_of("TM+TE, rate 30")]
    assert [dict(method.settings) for method in methods] == [{}, {"insert_rate": 30.0}]


def test_a_moment_beyond_the_steps_is_refused():
    with pytest.raises(ValueError, match=r"moment=1\.0"):
        BranchPoint(1.0)
