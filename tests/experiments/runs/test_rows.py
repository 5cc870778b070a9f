"""A whole benchmark run, tiny: rows pair, results add up, what is finished is used again, a page comes out."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_dense import TINY

from experiments import cli
from experiments.dense.branch_point import BranchPoint
from experiments.dense.experiment import LOSS_WEIGHTS, TUNED_WEIGHTS, Bench
from experiments.dense.model import build
from experiments.dense.pretraining import start_of
from experiments.dense.recipe import Recipe
from experiments.dense.training import begin
from experiments.runner import jobs
from experiments.runner.progress import Lines, shown
from experiments.runner.resume import read_state
from experiments.runs.by_name import method_of
from experiments.runs.collect import collect, write_report
from experiments.runs.rows import plan_of_method, run_of, trained
from experiments.runs.schedule import jobs_of
from experiments.tables.table import cells, markdown, table
from experiments.training.run import Run
from experiments.training.step_cost import compare

METHODS = ("ST", "MT", "TM", "TE", "TM+TE")
RECIPE = replace(TINY, size=32, patch=8, depth=2, images=(8, 8, 5), start="trunk", pretrain_steps=3, expand_at=2)


class Silent:
    def update(self, name: str, done: int, total: int) -> None:
        pass


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Bench:
    bench = Bench("scenes", RECIPE, tmp_path_factory.mktemp("runs"))
    jobs.run(jobs_of(bench, METHODS), Silent(), workers=1)
    return bench


@pytest.fixture(scope="module")
def results(finished: Bench) -> dict:
    return collect(finished, METHODS, command="python -m experiments bench scenes", seconds=1.0)


def test_every_row_has_finite_figures_and_its_added_parameters_follow_the_formula(results: dict):
    assert [row["method"] for row in results["rows"]] == list(METHODS)
    rows = {row["method"]: row for row in results["rows"]}
    p, tasks, blocks = RECIPE.width, 4, 1
    assert [rows[m]["parameters_added"] for m in METHODS] == [
        0,
        0,
        2 * p * tasks * blocks,
        p * tasks * blocks,
        3 * p * tasks * blocks,
    ]
    assert rows["ST"]["delta_m"] == 0
    assert rows["MT"]["step_cost"] == rows["MT"]["inference_cost"] == rows["MT"]["wall_clock_ratio"] == 1
    for row in results["rows"]:
        assert all(isinstance(value, float) for value in row["metrics"].values())
        mean = sum(row["gains"].values()) / tasks
        assert row["delta_m"] == pytest.approx(mean)
        assert row["step_cost"] > 0
        assert (row["streams_part_at"] is None) == (row["method"] in ("ST", "MT"))


def test_results_are_json_and_say_how_they_were_made(finished: Bench, results: dict):
    kept = json.loads((finished.out / "results.json").read_text())
    assert kept.pop("digest")
    assert kept == json.loads(json.dumps(results))
    assert kept["settings"]["recipe"]["steps"] == 6
    assert (
        kept["versions"]["torch"] == torch.__version__.split("+")[0] or kept["versions"]["torch"] == torch.__version__
    )
    assert set(kept["curves"]) == set(METHODS)


def test_expanded_rows_branch_off_the_plain_run(finished: Bench):
    start = read_state(finished.out / "start.pt")
    assert start["step"] == RECIPE.expand_at
    assert {task: len(losses) for task, losses in start["pending"].items()} == dict.fromkeys(LOSS_WEIGHTS["scenes"], 2)
    for method in METHODS[1:]:
        begun = run_of(finished, finished.load(), method_of(method))
        assert (begun.step, begun.pending) == (start["step"], start["pending"])
        assert [step for step, _ in finished.read_row(method)["curves"]["depth"]] == [RECIPE.steps]


def test_rows_with_other_weights_train_on_them(finished: Bench):
    suite = finished.load()

    def weights(name: str) -> dict[str, float]:
        return {task.name: task.weight for task in run_of(finished, suite, method_of(name)).workload.tasks}

    own, even = LOSS_WEIGHTS["scenes"], BranchPoint().measured(finished).even_weights()
    assert weights("MT") == weights("TM+TE") == own
    assert weights("MT, tuned weights") == weights("TM+TE, tuned weights") == TUNED_WEIGHTS["scenes"] != own
    assert weights("MT, even gradients") == {task: own[task] * even[task] for task in own}
    assert weights("MT, task 2 x 3") == {**own, "depth": 3 * own["depth"]}
    assert weights("MT, semseg x 3, edges / 9") == TUNED_WEIGHTS["scenes"]


def test_tuned_weights_from_the_start_change_what_rows_begin_with_and_every_row(tmp_path: Path, finished: Bench):
    whole = replace(RECIPE, start="plateau")
    common = Bench("scenes", whole, tmp_path / "common")
    tuned = replace(common, out=tmp_path / "tuned", weights="tuned")
    starts = [start_of(bench, lambda done, total: None) for bench in (common, tuned)]
    assert any(not torch.equal(weight, starts[1][name]) for name, weight in starts[0].items())
    jobs.run(jobs_of(tuned, ["MT", "MT, even gradients"]), Silent(), workers=1)
    suite, even = tuned.load(), BranchPoint().measured(tuned).even_weights()

    def weights(name: str) -> dict[str, float]:
        return {task.name: task.weight for task in run_of(tuned, suite, method_of(name)).workload.tasks}

    assert weights("MT") == weights("TM+TE") == TUNED_WEIGHTS["scenes"] == tuned.settings()["loss_weights"]
    assert weights("MT, even gradients") == {task: TUNED_WEIGHTS["scenes"][task] * even[task] for task in even}
    assert tuned.is_done("MT")
    assert not replace(tuned, weights="common").is_done("MT")  # what was trained with other weights is not used again


def test_even_gradients_pay_for_their_analysis(finished: Bench, tmp_path: Path):
    methods = ("ST", "MT", "MT, even gradients")
    again = replace(
        finished, out=shutil.copytree(finished.out, tmp_path / "again")
    )  # prices are kept per list of methods
    jobs.run(jobs_of(again, methods), Silent(), workers=1)
    rows = collect(again, methods, command="python -m experiments bench scenes", seconds=1.0)["rows"]
    plain, even = rows[1], rows[2]
    assert plain["analysis_share"] == 0 < even["analysis_share"]
    trained = RECIPE.expand_at + (RECIPE.steps - RECIPE.expand_at) * even["step_cost"]
    assert even["wall_clock_ratio"] == pytest.approx(trained / RECIPE.steps + even["analysis_share"])


def test_weights_of_another_suite_are_refused(finished: Bench):
    with pytest.raises(
        ValueError, match="'MT, boundary / 9' has weights for the losses of nuclei only, not of 'scenes'"
    ):
        jobs_of(finished, ["MT, boundary / 9"])


def test_what_is_finished_is_not_done_again_unless_settings_change(finished: Bench):
    assert jobs_of(finished, METHODS) == []
    changed = replace(finished, recipe=replace(RECIPE, steps=7))
    assert {job.name for job in jobs_of(changed, ("ST", "MT"))} >= {"MT", "MT, first steps", "ST depth"}
    other = replace(finished, data=finished.out / "other.tar")
    assert "MT" in {job.name for job in jobs_of(other, METHODS)}
    path = finished.out / "rows" / "TM.json"
    text = path.read_text()
    path.write_text(text[:50])
    with pytest.warns(UserWarning, match=r"TM\.json is not read, and made anew"):
        assert [job.name for job in jobs_of(finished, METHODS) if not job.name.startswith("scenes, ")] == ["TM"]
    path.write_text(text)


def test_a_start_that_is_damaged_or_gone_is_made_anew_for_whom_it_is_needed(finished: Bench):
    start, row = finished.out / "start.pt", finished.path_of("TM", "json")
    whole, text = start.read_bytes(), row.read_text()
    start.unlink()
    assert jobs_of(finished, METHODS) == []  # nothing waits for it
    row.unlink()
    for content in (None, whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        if content is not None:
            start.write_bytes(content)
        with pytest.warns(UserWarning, match=r"start\.pt is (missing|damaged)"):
            again = {job.name for job in jobs_of(finished, METHODS) if not job.name.startswith("scenes, ")}
        assert again == {"TM", "MT, first steps"}
    start.write_bytes(whole)
    row.write_text(text)


def test_a_finished_row_gives_back_its_model(finished: Bench):
    model = trained(finished, "TM+TE")
    plan = plan_of_method(finished, "TM+TE")
    assert plan is not None
    assert plan.modulate
    assert plan.expand
    names = {name for name, _ in model.named_parameters() if ".dtme." in name}
    assert {name.rpartition(".")[2] for name in names} == {"scale", "shift", "tokens"}
    assert len(trained(finished, "ST depth").heads) == 1


def test_the_table_shows_every_figure(results: dict):
    head, rows = cells([results])
    assert all(len(row) == len(head) for row in rows)
    text = markdown([results])
    assert text.count("\n") == len(METHODS) + 2
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(table([results]))
    printed = console.export_text()
    assert all(cell in printed for row in rows for cell in row)


def test_the_report_page_is_one_file(finished: Bench, results: dict):
    page = write_report(finished, results, METHODS, images=2).read_text(encoding="utf-8")
    assert all(method in page for method in ("ST", "MT", "TM+TE"))
    assert not re.search(r"<(script|link)\b|src=\"http", page)


def test_cost_is_measured_against_plain_training(finished: Bench):
    suite = finished.load()

    def run_of(tasks: tuple) -> Run:
        return begin(build(tasks, RECIPE, 0), tasks, suite.train, RECIPE, seed=0)

    plain, batches = run_of(suite.tasks), [suite.train.batch(slice(0, RECIPE.batch))] * 3
    step, inference = compare(plain, [run_of((task,)) for task in suite.tasks], batches)
    assert step > 1
    assert inference > 1
    assert plain.step == 0  # its place in the schedule is not what is measured


def test_progress_as_plain_lines():
    console = Console(width=80, record=True, file=io.StringIO())
    lines = Lines(console)
    for done in range(5):
        lines.update("MT", done, 4)
    lines.update("MT", 1, 1)
    printed = console.export_text().splitlines()
    assert printed[0] == "MT: started"
    assert [line.split(",")[0] for line in printed[1:]] == ["MT: 25 %", "MT: 50 %", "MT: 75 %", "MT: done"]


def test_bars_in_a_terminal():
    console = Console(width=80, force_terminal=True, record=True, file=io.StringIO())
    with shown(console) as display:
        display.update("MT", 0, 0)
        display.update("MT", 3, 6)
        display.update("MT", 1, 1)
        assert display.progress.tasks[0].completed == 6  # pyright: ignore[reportAttributeAccessIssue]


def test_the_command_line_names_what_is_missing(tmp_path: Path):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "nuclei", "--data", str(tmp_path / "none.tar"), "--out", str(tmp_path)])
    assert "none.tar" in str(stopped.value)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "nuclei", "--out", str(tmp_path)])
    assert "--data" in str(stopped.value)


def test_a_recipe_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="size=30"):
        Recipe(size=30)
    with pytest.raises(ValueError, match="expand_at=9"):
        Recipe(steps=9, expand_at=9)
