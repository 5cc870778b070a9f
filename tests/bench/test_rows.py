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

from dtme import cli
from dtme.bench import jobs
from dtme.bench.beginnings import start_of
from dtme.bench.branch_point import BranchPoint
from dtme.bench.catalogue import method_of
from dtme.bench.cost import costs
from dtme.bench.display import Lines, shown
from dtme.bench.experiment import LOSS_WEIGHTS, TUNED_WEIGHTS, Bench, figures, is_done
from dtme.bench.model import build
from dtme.bench.recipe import Recipe
from dtme.bench.results import collect, write_report
from dtme.bench.rows import plan_of_method, run_of, trained
from dtme.bench.schedule import jobs_of
from dtme.bench.table import cells, markdown, table
from dtme.bench.training import Run, optimiser

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
    return collect(finished, METHODS, command="dtme bench scenes", seconds=1.0)


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
    assert kept == json.loads(json.dumps(results))
    assert kept["settings"]["recipe"]["steps"] == 6
    assert (
        kept["versions"]["torch"] == torch.__version__.split("+")[0] or kept["versions"]["torch"] == torch.__version__
    )
    assert set(kept["curves"]) == set(METHODS)


def test_expanded_rows_branch_off_the_plain_run(finished: Bench):
    start = torch.load(finished.out / "start.pt", weights_only=True)
    assert start["step"] == RECIPE.expand_at
    for method in METHODS[1:]:
        curve = figures(finished, method)["curves"]["depth"]
        assert curve[: len(start["curves"]["depth"])] == start["curves"]["depth"]
        assert curve[-1][0] == RECIPE.steps


def test_rows_with_other_weights_train_on_them(finished: Bench):
    suite = finished.load()

    def weights(name: str) -> dict[str, float]:
        return {task.name: task.weight for task in run_of(finished, suite, method_of(name)).tasks}

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
        return {task.name: task.weight for task in run_of(tuned, suite, method_of(name)).tasks}

    assert weights("MT") == weights("TM+TE") == TUNED_WEIGHTS["scenes"] == tuned.settings()["loss_weights"]
    assert weights("MT, even gradients") == {task: TUNED_WEIGHTS["scenes"][task] * even[task] for task in even}
    assert is_done(tuned, "MT")
    assert not is_done(replace(tuned, weights="common"), "MT")  # what was trained with other weights is not used again


def test_even_gradients_pay_for_their_analysis(finished: Bench, tmp_path: Path):
    methods = ("ST", "MT", "MT, even gradients")
    again = replace(
        finished, out=shutil.copytree(finished.out, tmp_path / "again")
    )  # prices are kept per list of methods
    jobs.run(jobs_of(again, methods), Silent(), workers=1)
    rows = collect(again, methods, command="dtme bench scenes", seconds=1.0)["rows"]
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
    assert [job.name for job in jobs_of(finished, METHODS) if not job.name.startswith("scenes, ")] == ["TM"]
    path.write_text(text)


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
        model = build(tasks, RECIPE, 0)
        return Run(model, tasks, optimiser(model, RECIPE))

    runs = {"MT": [run_of(suite.tasks)], "ST": [run_of((task,)) for task in suite.tasks]}
    found = costs(runs, suite.train, RECIPE, turns=2)
    assert found["MT"].step == found["MT"].inference == 1
    assert found["ST"].step > 1


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
