"""A run over several seeds at a plateau: one start per seed, rows that go on where they were interrupted, one table."""

import io
import json
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_dense import TINY

from experiments import cli
from experiments.commands import options
from experiments.dense.branch_point import train_first_steps
from experiments.dense.experiment import Bench
from experiments.dense.methods import METHODS as METHODS_OF_TABLE
from experiments.dense.pretraining import begin_all, start_of
from experiments.runner.jsonl import read_lines, rows_of
from experiments.runner.resume import read_again, read_state
from experiments.runs.by_name import method_of
from experiments.runs.rows import finish, run_of, trained
from experiments.runs.schedule import jobs_of
from experiments.runs.total_cost import steps_of
from experiments.tables.table import cells, markdown
from experiments.training import unfinished
from experiments.training.run import train

RECIPE = TINY
METHODS = ("ST", "MT", "TM+TE", "MT as long as TM+TE", "TM+TE random, same cost", "Adapt last block")


def ignore(done: int, total: int) -> None:
    pass


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Path:
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(options.REGIMES, "plateau", RECIPE)
        command = ["bench", "scenes", "--regime", "plateau", "--seeds", "0", "1", "--out", str(out), "--methods"]
        patch.setattr(sys, "argv", ["dtme", *command, *METHODS])
        cli.main()
    return out


def test_the_lines_hold_every_row_of_every_seed(folder: Path):
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {(line["seed"], line["method"]) for line in lines} == {(s, m) for s in (0, 1) for m in METHODS}
    for line in lines:
        assert {"command", "versions", "hardware", "settings", "step_flops", "delta_m", "steps"} <= line.keys()
        assert "--regime plateau" in line["command"]
    assert all({"versions", "hardware"} == set(line["made_with"]) for line in lines)


def test_the_table_of_the_lines_is_the_table_of_the_run(folder: Path):
    runs = read_lines(folder / "results.jsonl")
    assert markdown(runs) == (folder / "table.md").read_text(encoding="utf-8")
    head, drawn = cells(runs)
    assert "against MT" in head
    assert all(len(row) == len(head) for row in drawn)
    place = head.index("against MT")
    shown = {row[0]: row[place] for row in drawn}
    assert shown["MT"] == "0"
    assert re.fullmatch(r"[+-][\d.]+ ± [\d.]+", shown["TM+TE"])


def test_a_method_that_lacks_a_seed_says_so(folder: Path):
    runs = read_lines(folder / "results.jsonl")
    runs[1]["rows"] = [row for row in runs[1]["rows"] if row["method"] != "TM+TE"]
    _, drawn = cells(runs)
    assert "TM+TE (1 seeds)" in [row[0] for row in drawn]


def test_rows_of_other_seeds_begin_elsewhere_and_those_of_one_seed_together(folder: Path):
    starts = [read_state(folder / f"seed-{seed}" / "start.pt")["model"] for seed in (0, 1)]
    name = "trunk.blocks.0.attn.qkv.weight"
    assert not torch.equal(starts[0][name], starts[1][name])
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    kept = start_of(bench, ignore)
    assert torch.equal(kept[name], starts[0][name])
    assert any(name.startswith("heads.") for name in kept)


def test_longer_training_is_paid_at_the_price_that_was_measured(folder: Path):
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    price = bench.read_row("cost")["costs"]["TM+TE"]["step"]
    analysis = bench.read_row("MT, first steps")["analysis_steps"]
    expected = round(analysis + RECIPE.steps * price)
    assert (
        bench.read_row("MT as long as TM+TE")["steps"] == expected == steps_of(bench, method_of("MT as long as TM+TE"))
    )
    assert rows_of(read_lines(folder / "results.jsonl"), "MT as long as TM+TE")[0]["steps"] == expected


def test_flops_of_streams_that_part_at_once_are_those_of_the_streams(folder: Path):
    prices = Bench("scenes", RECIPE, folder / "seed-0").read_row("cost")["costs"]
    assert prices["MT"]["step_flops"] == prices["MT"]["inference_flops"] == 1
    assert 1 < prices["Adapt last block"]["inference_flops"] < 2.5
    assert 1 < prices["TM+TE"]["step_flops"] < 1.1 * prices["ST"]["step_flops"]  # a task token more than ST


def test_added_parameters_of_low_rank_updates_are_counted(folder: Path):
    row = rows_of(read_lines(folder / "results.jsonl"), "Adapt last block")[0]
    p, rank, tasks = RECIPE.width, 4, 4
    assert row["parameters_added"] == tasks * rank * ((p + 3 * p) + (p + p) + 2 * (p + 4 * p))


def test_an_interrupted_row_goes_on_and_ends_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unfinished, "KEPT_EVERY", 2)
    monkeypatch.setattr(unfinished, "train", partial(train, every=1))
    bench = Bench("scenes", RECIPE, tmp_path)
    begin_all(bench, ignore)
    train_first_steps(bench, ignore)

    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(bench, "TM+TE", stop)
    left = read_state(tmp_path / "rows" / "TM+TE.pt")
    assert left["run"]["step"] == 2
    finish(bench, "TM+TE", ignore)
    whole = Bench("scenes", RECIPE, folder / "seed-0").read_row("TM+TE")
    assert bench.read_row("TM+TE")["metrics"] == whole["metrics"]
    assert not (tmp_path / "rows" / "TM+TE.pt").exists()


def test_what_an_interrupted_row_left_is_not_used_with_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unfinished, "KEPT_EVERY", 2)
    path = tmp_path / "rows" / "MT.pt"
    path.parent.mkdir()
    torch.save({"settings": json.dumps({"seed": 5}), "run": {}}, path)
    assert read_again(path, {"seed": 4}) is None
    path.write_bytes(b"cut short")
    with pytest.warns(UserWarning, match=r"MT\.pt is damaged.*begins anew"):
        assert read_again(path, {"seed": 5}) is None


def test_new_methods_are_priced_when_they_come(folder: Path):
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    assert jobs_of(bench, METHODS) == []
    left = {job.name for job in jobs_of(bench, [*METHODS, "TM"], "seed 0: ")}
    assert {name for name in left if not name.startswith("scenes, ")} == {"seed 0: cost", "seed 0: TM"}
    changed = replace(bench, recipe=replace(RECIPE, steps=7))
    assert "start" in {job.name for job in jobs_of(changed, METHODS)}


def test_a_wrong_method_is_named_on_the_command_line(tmp_path: Path):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "scenes", "--methods", "TX", "--out", str(tmp_path)])
    assert "no 'TX'" in str(stopped.value)


def test_the_table_in_a_terminal_keeps_every_cell(folder: Path):
    from experiments.tables.table import table

    runs = read_lines(folder / "results.jsonl")
    console = Console(width=240, file=io.StringIO(), record=True)
    console.print(table(runs))
    printed = console.export_text()
    assert all(cell in printed for row in cells(runs)[1] for cell in row)


@pytest.mark.parametrize("method", METHODS_OF_TABLE, ids=lambda method: method.name)
def test_every_method_trains_keeps_its_model_and_starts_where_plain_training_does(folder: Path, method):
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    suite = bench.load()
    if method.name == "ST":
        return
    begun = run_of(bench, suite, method)
    plain = run_of(bench, suite, method_of("MT"))
    images = suite.test.batch(slice(0, 4))["image"]
    with torch.no_grad():
        first, known = begun.model.eval()(images), plain.model.eval()(images)
    changes_the_start = method.shape is not None or "TE" in method.name
    for task in known:
        assert first[task].shape == known[task].shape
        assert changes_the_start or torch.allclose(first[task], known[task], atol=1e-5)
    if method.name not in METHODS:
        if method.lasts is not None or method.longer > 1:
            return
        finish(bench, method.name, ignore)
    left = trained(bench, method.name).eval()
    with torch.no_grad():
        last = left(images)
    assert all(bool(output.isfinite().all()) for output in last.values())
    assert any(not torch.equal(last[task], first[task]) for task in known)


def test_a_balancing_goes_on_with_its_state(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    suite = bench.load()
    whole, halves = (run_of(bench, suite, method_of("UW")) for _ in range(2))
    kept: dict = {}
    for run, stops in ((whole, [6]), (halves, [3, 6])):
        for stop in stops:
            if run is halves and stop == 6:
                run = run_of(bench, suite, method_of("UW"))
                run.restore(kept)
            train(run, stop)
            kept = run.state()
        if stops == [6]:
            expected = {name: value.clone() for name, value in kept["balancing"].items()}
    assert expected
    assert all(torch.equal(kept["balancing"][name], value) for name, value in expected.items())


def test_wider_trunks_add_about_as_many_parameters_as_the_method(folder: Path):
    bench = Bench("scenes", RECIPE, folder / "seed-0")
    suite = bench.load()
    methods = ("TM+TE", "Adapt last block", "own last block")
    counts = {
        name: sum(p.numel() for p in run_of(bench, suite, method_of(name)).model.parameters())
        for name in ("MT", *methods, *(f"MT wider, as {method}" for method in methods))
    }
    for name in methods:
        added = counts[name] - counts["MT"]
        wider = counts[f"MT wider, as {name}"] - counts["MT"]
        assert abs(wider - added) <= RECIPE.depth * (2 * RECIPE.width + 1)
