"""`bench glue` from the command line to the table: every row, interruption, the same twice, tuning, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_text import write_glue

from experiments import cli
from experiments.runner.jsonl import read_lines, rows_of
from experiments.runner.resume import read_state
from experiments.tables.doc_tables import filled
from experiments.tables.text_table import cells, markdown
from experiments.text import TextRecipe, build
from experiments.text.experiment import TextBench
from experiments.text.glue import glue_task, read_glue
from experiments.text.lr_search import tune
from experiments.text.methods import METHODS
from experiments.text.pretraining import beginning, plateau
from experiments.text.results import collect
from experiments.text.rows import (
    FIRST,
    begin_all,
    finish,
    first_steps,
    jobs_of,
    price,
    read,
    single_task,
    start,
    steps_of,
    wall_clocks,
)
from experiments.training import unfinished
from experiments.training.run import step, train

NAMES = ("CoLA", "STS-B", "RTE")
ALL = tuple(method.name for method in METHODS)


def ignore(done: int, total: int) -> None:
    pass


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, data: Path, trunk: str) -> TextBench:
    recipe = TextRecipe(trunk=trunk, steps=10, batch=6, analysis_samples=6, learning_rate=1e-3, expand_after=0.3)
    tasks = tuple(glue_task(name) for name in NAMES)
    return TextBench("glue", tasks, partial(read_glue, data), recipe, tmp_path_factory.mktemp("seed"), seed=4)


@pytest.fixture(scope="module")
def whole(bench: TextBench) -> TextBench:
    """Every row of one seed, finished in this process."""
    begin_all(bench, ignore)
    first_steps(bench, ignore)
    price(bench, ALL, ignore)
    for task in bench.tasks:
        single_task(bench, task, ignore)
    for name in ALL[1:]:
        finish(bench, name, ignore)
    return bench


def test_every_row_ends_in_figures(whole: TextBench):
    results = collect(whole, whole.load(), ALL, command="python -m experiments bench glue", seconds=1.0)
    assert [row["method"] for row in results["rows"]] == list(ALL)
    for row in results["rows"]:
        assert set(row["metrics"]) == set(NAMES)
        assert row["mean"] == pytest.approx(sum(row["metrics"].values()) / 3)
        assert row["step_cost"] > 0
        assert row["wall_clock"] > 0
    added = {row["method"]: row["parameters_added"] for row in results["rows"]}
    assert added["TM"] == 2 * 2 * 3 * 16
    assert added["TE"] == 2 * 3 * 16
    assert added["TM+TE"] == added["TM+TE random"] == added["TM"] + added["TE"] == added["TM+TE all"] // 2
    per_block = 4 * 3 * (16 + 16) + 2 * 3 * (16 + 32)
    assert added["Adapt"] == 2 * 3 * per_block
    assert added["TM+TE+Adapt"] == added["Adapt"] + added["TM+TE"]
    assert added["recommended"] == 10 * per_block
    assert added["own last block"] == 2 * (4 * (16 * 16 + 16) + 2 * 16 * 32 + 32 + 16 + 2 * 2 * 16)
    assert added["LoRA per task"] == 4 * 3 * 2 * 8 * (16 + 16)
    assert added["MT"] == added["MT as long as the dearest"] == 0 < added["Norms per task"]
    assert any("not to be compared with published" in remark for remark in results["remarks"])
    assert "unweighted mean over CoLA (MCC), STS-B" in results["average"]
    for row in results["rows"]:
        plan = row["plan"]
        assert (plan is not None) == (row["method"][:2] in ("TM", "TE", "Ad", "re", "ow"))


def test_mt_at_the_wall_clock_of_the_dearest_row_lasts_as_long_as_it(whole: TextBench):
    clocks = wall_clocks(whole)
    assert set(clocks) == set(ALL) - {"ST", "MT as long as the dearest"}
    longest = max(clocks.values())
    assert whole.read_row("MT as long as the dearest")["steps"] == round(10 * longest)
    step = whole.read_row("cost")["step"]["TM+TE"]
    analysis = whole.read_row(FIRST)["analysis_steps"]
    assert clocks["TM+TE"] == pytest.approx((3 + analysis + 7 * step) / 10)


def test_single_task_rows_see_as_much_of_their_task(whole: TextBench):
    steps = [whole.read_row(f"ST {name}")["steps"] for name in NAMES]
    assert sum(steps) == pytest.approx(10, abs=2)


def test_what_is_finished_is_used_again_and_other_settings_are_not(whole: TextBench):
    assert jobs_of(whole, ALL) == []
    other = replace(whole, recipe=replace(whole.recipe, rank=2))
    assert {job.name for job in jobs_of(other, ("MT", "TM"))} == {"sentences", "start", FIRST, "cost", "MT", "TM"}
    replace(whole, out=whole.out / "other").write_row("MT", {})
    assert not replace(whole, out=whole.out / "other").is_done("TM")


def test_the_same_twice_and_an_interrupted_row_ends_the_same(whole: TextBench, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(unfinished, "KEPT_EVERY", 2)
    again = replace(whole, out=tmp_path)
    first_steps(again, ignore)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads((whole.out / "report.json").read_text())

    monkeypatch.setattr(unfinished, "train", partial(train, every=1))

    def stop(done: int, total: int) -> None:
        if done >= 7:
            raise KeyboardInterrupt

    for name in ("TM+TE+Adapt", "own last block", "LoRA per task"):
        with pytest.raises(KeyboardInterrupt):
            finish(again, name, stop)
        assert (tmp_path / "rows" / f"{name.replace(' ', '-')}.pt").exists()
        assert not again.is_done(name)
        begun: list[int] = []
        finish(again, name, lambda done, total, begun=begun: begun.append(done))
        assert (
            begun[0] == 6
        )  # written down after steps 5 and 7 of a start at 3: the one that was stopped in is repeated
        assert again.read_row(name)["measures"] == whole.read_row(name)["measures"]
        assert [step for step, _ in again.read_row(name)["curves"]["CoLA"]][-1] <= 10
        assert not (tmp_path / "rows" / f"{name.replace(' ', '-')}.pt").exists()


def test_rows_may_begin_at_a_plateau_trained_once(bench: TextBench, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path / "cache"))
    own = replace(
        bench, recipe=replace(bench.recipe, start_steps=7, expand_after=0.0, row_rate=0.5), out=tmp_path / "a"
    )
    suite, seen = own.load(), []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 4 and len(seen) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(unfinished, "KEPT_EVERY", 2)
    monkeypatch.setattr(unfinished, "train", partial(train, every=4))
    with pytest.raises(KeyboardInterrupt):
        begin_all(own, stop)
    begin_all(own, stop)
    assert seen == [(4, 7), (4, 7), (7, 7)]  # from step 2 on, the second time
    kept = plateau(own, suite, stop)
    assert len(seen) == 3
    plain = build(own.recipe.trunk, suite.tasks, own.seed).state_dict()
    assert not any(torch.equal(kept[name], plain[name]) for name in plain if name.endswith("predict.weight"))
    (task,) = (task for task in suite.tasks if task.name == "RTE")
    for model in (beginning(own, suite), beginning(own, suite, task)):
        assert all(torch.equal(weight, kept[name]) for name, weight in model.state_dict().items())
    other = replace(own, recipe=replace(own.recipe, rank=2, steps=12, insert_rate=3.0), out=tmp_path / "b")
    begin_all(other, stop)
    assert len(seen) == 3  # rows of other settings begin with the same
    run = start(own, suite)
    assert (run.step, run.workload.steps) == (0, 10)
    first_steps(own, ignore)
    assert own.read_row(FIRST)["analysis_steps"] > 0
    assert read_state(own.out / "start.pt")["step"] == 0
    step(run, suite.batch([(0, 0), (1, 0), (2, 0)]))
    assert {group["lr"] / group["rate"] for group in run.optimizer.param_groups} == {0.5e-3}
    assert replace(own, recipe=replace(own.recipe, start_steps=8)).settings() != own.settings()


def test_the_command_runs_two_seeds_and_prints_one_table(tmp_path: Path, data: Path, trunk: str, monkeypatch, capsys):
    command = [
        "bench",
        "glue",
        "--data",
        str(data),
        "--tasks",
        "RTE",
        "CoLA",
        "--methods",
        "TM+TE",
        "--seeds",
        "0",
        "1",
    ]
    command += [
        "--trunk",
        trunk,
        "--steps",
        "6",
        "--batch",
        "4",
        "--analysis-samples",
        "4",
        "--no-fast",
        "--workers",
        "1",
    ]
    command += ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["dtme", *command])
    cli.main()
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {(line["seed"], line["method"]) for line in lines} == {(s, m) for s in (0, 1) for m in ("ST", "MT", "TM+TE")}
    for line in lines:
        assert str(tmp_path) not in json.dumps(line)
        assert "--data glue" in line["command"]
        assert line["settings"]["recipe"]["trunk"] == Path(trunk).name
        assert {"measures", "mean", "average", "versions", "hardware", "remarks"} <= line.keys()
    printed = capsys.readouterr().out
    assert "RTE, train: 30 rows, but the official split has 2,490" in printed
    assert "TM+TE" in printed
    results = tmp_path / "out" / "results.jsonl"
    cli.main(["table", str(results)])
    expected = (tmp_path / "out" / "table.md").read_text()
    assert capsys.readouterr().out == expected == markdown(read_lines(results))
    page = f"before\n\n<!-- table {results} -->\nold\n<!-- end of table -->\n\nafter\n"
    drawn = f"before\n\n<!-- table {results} -->\n\n{expected}\n<!-- end of table -->\n\nafter\n"
    assert filled(page, Path()) == drawn
    assert "| MT |" not in filled(page.replace(" -->\nold", ": TM+TE -->\nold"), Path())


def test_the_table_pairs_seeds_and_says_what_is_missing(whole: TextBench):
    results = collect(whole, whole.load(), ALL, command="", seconds=1.0)
    two = [
        results,
        {**results, "seed": 5, "rows": [{**row, "mean": row["mean"] + i} for i, row in enumerate(results["rows"])]},
    ]
    head, drawn = cells(two)
    assert all(len(row) == len(head) for row in drawn)
    shown = {row[0]: row for row in drawn}
    assert shown["MT"][head.index("against MT")] == "0"
    difference = shown["TM"][head.index("against MT")]
    gap = rows_of(two, "TM")[4]["mean"] - rows_of(two, "MT")[4]["mean"]
    assert difference.startswith(f"{gap + 1:+.2f} ± ")  # row 3 gains 3 in the other seed, and MT 1
    two[1] = {**two[1], "rows": [row for row in two[1]["rows"] if row["method"] != "TM"]}
    assert "TM (1 of 2 seeds)" in {row[0] for row in cells(two)[1]}


def test_tuning_takes_the_best_rate_then_the_best_sampler_then_the_rates_of_inserts(bench: TextBench, tmp_path: Path):
    ran: list[str] = []

    def found(jobs) -> None:
        for job in jobs:
            ran.append(job.name)
            if job.work is read:
                continue
            work, (own, *_), row, _ = job.arguments
            if work is begin_all:
                continue
            recipe = own.recipe
            good = recipe.learning_rate if recipe.learning_rate < 3e-3 else 0.0
            value = 1e4 * good + 10 * (recipe.sampler == "temperature")
            value += recipe.insert_rate * (row == "TM+TE") - recipe.low_rank_rate * (row == "Adapt")
            value += recipe.copies_rate * (row == "own last block")
            value += 1e4 * (row == "ST RTE" and good == 0)
            own.write_row(row, {"measures": {task: {"x": value} for task in NAMES}})

    own = replace(bench, out=tmp_path)
    result = tune(own, found, ("MT", "ST", "inserts"))
    assert result.recipe == replace(
        own.recipe,
        learning_rate=2e-3,
        sampler="temperature",
        insert_rate=3 * own.recipe.insert_rate,
        low_rank_rate=0.3 * own.recipe.low_rank_rate,
        copies_rate=3 * own.recipe.copies_rate,
    )
    assert result.single_rates == {"CoLA": 2e-3, "STS-B": 2e-3, "RTE": 4e-3}
    rates = {"TM+TE": 10, "Adapt": 10, "own last block": 3}
    at = [f"{row} at {factor * rate:g}" for row, rate in rates.items() for factor in (0.3, 1, 3)]
    assert list(result.scores) == [
        *("0.0005", "0.001", "0.002", "0.004", "proportional", "annealed", "temperature", "round robin"),
        *at,
    ]
    assert sum(name.endswith(": TM+TE") for name in ran) == 3
    assert sum(name.endswith(FIRST) for name in ran) == 4 + 4 + 2  # the rates in the middle branch off what MT began
    assert "insert rate 30, low-rank rate 3, copies' rate 9 (tried: " in result.remark()
    ran.clear()
    assert tune(own, found, ("MT", "ST", "inserts")) == result
    assert ran == []
    alone = tune(own, found, ("inserts",))
    assert (alone.recipe.learning_rate, alone.recipe.sampler) == (own.recipe.learning_rate, own.recipe.sampler)
    assert alone.recipe.insert_rate == 3 * own.recipe.insert_rate
    assert "single-task" not in alone.remark()


def test_numbers_of_a_reference_that_is_not_positive_give_no_delta(whole: TextBench, monkeypatch):
    from experiments.text import results as text_results

    def zero(bench: TextBench, name: str):
        return {task: {"x": 0.0 if name == "ST" else 50.0} for task in NAMES}

    monkeypatch.setattr(text_results, "_measures", zero)
    rows = collect(whole, whole.load(), ("ST", "MT"), command="", seconds=1.0)["rows"]
    assert rows[1]["delta_m"] is None
    assert "single-task score of CoLA is 0.00" in rows[1]["no_delta_m"]
    assert steps_of(whole, METHODS[1]) == 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "nowhere"], "nowhere is no folder. Give the one that holds CoLA"),
        (["--data", "{data}", "--tasks", "RTE", "Cola"], "GLUE has no 'Cola'. Choose from: CoLA"),
        (["--data", "{data}", "--tasks", "RTE", "WNLI"], "has no folder WNLI"),
        (["--data", "{data}", "--tasks", "RTE"], "multi-task training needs at least two; there are CoLA, STS-B, RTE"),
        (["--data", "{data}", "--methods", "TX"], "there is no 'TX'. Choose from: ST, MT"),
        (["--data", "{data}", "--seeds"], "give at least one whole number"),
        (["--data", "{data}", "--trunk", "{data}"], "cannot be used"),
        (["--data", "{data}", "--steps", "1"], "at least 2 steps"),
    ],
)
def test_what_is_refused_says_what_to_do(options: list[str], says: str, data: Path, trunk: str, tmp_path: Path):
    given = [option.format(data=data) for option in options]
    own = [] if "--trunk" in given else ["--trunk", trunk]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "glue", *given, *own, "--out", str(tmp_path / "out")])
    assert says in str(stopped.value)
    assert not (tmp_path / "out").exists()


def test_a_bad_file_is_named_before_anything_is_trained(tmp_path: Path, trunk: str):
    data = write_glue(tmp_path / "glue")
    (data / "CoLA" / "dev.tsv").write_text("src\t1\t\tfine\nsrc\t7\t\tbad\n")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "glue", "--data", str(data), "--trunk", trunk, "--out", str(tmp_path / "out")])
    assert "dev.tsv, line 2: label '7' is none of ('0', '1'): mend the line" in str(stopped.value)
    assert not (tmp_path / "out").exists()
