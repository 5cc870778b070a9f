"""Suites of images on disk from the command to the table, on small copies in the formats of the field."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from nyud13_copies import mtan_copy
from nyud_copies import invpt_copy, lists, maps, mti_copy, npy, png
from pascal_copies import TRAIN as PASCAL_TRAIN
from pascal_copies import pascal_copy
from taskonomy_copies import path_of, taskonomy_copy

from experiments import cli
from experiments.commands.disk_options import ROWS
from experiments.dense.backbones.recipe import BackboneRecipe
from experiments.dense.branch_point import train_first_steps
from experiments.dense.disk_bench import DiskBench, Reading
from experiments.dense.nyud import NyudChoices
from experiments.dense.pascal_context import PascalChoices
from experiments.dense.pretraining import begin_all
from experiments.runner.jsonl import read_lines, rows_of
from experiments.runner.resume import read_state
from experiments.runs.rows import finish
from experiments.runs.schedule import jobs_of
from experiments.training import unfinished
from experiments.training.run import train

pytestmark = pytest.mark.usefixtures("cache")

TRUNK = ["--weights", "none", "--width", "16", "--depth", "4", "--attention-heads", "2", "--head-width", "8"]
SHORT = ["--steps", "4", "--batch", "2", "--expand-at", "1", "--analysis-images", "2", "--device", "cpu"]
FAST = ["--learning-rate", "1e-2"]
COPIES = {
    "nyud": (invpt_copy, [], ("semseg", "depth", "normals", "edges")),
    "nyud13": (partial(mtan_copy, size=(32, 48)), ["--size", "32", "48"], ("semseg", "depth", "normals")),
    "pascal_context": (
        pascal_copy,
        ["--size", "32", "64", "--steps", "12", "--head-rate", "5"],
        ("semseg", "parts", "saliency", "normals", "edges"),
    ),
    "taskonomy": (
        taskonomy_copy,
        ["--size", "32", "32", "--tasks", "depth_euclidean", "normal", "principal_curvature", "segment_unsup25d"],
        ("depth_euclidean", "normal", "principal_curvature", "segment_unsup25d"),
    ),
}
RECIPE = BackboneRecipe(
    size=(48, 64),
    weights="none",
    width=16,
    depth=4,
    attention_heads=2,
    head_width=8,
    batch=2,
    steps=6,
    expand_at=1,
    analysis_batches=1,
    learning_rate=1e-3,
)


def ignore(done: int, total: int) -> None:
    pass


def bench(suite: str, data: Path, out: Path, *more: str) -> None:
    command = ["bench", suite, "--data", str(data), "--out", str(out), *TRUNK, *SHORT, *FAST, *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["experiments", *command])
        cli.main(command)


def refusal(suite: str, data: Path, out: Path, *more: str) -> str:
    """What a run says that does not start; it leaves nothing behind."""
    with pytest.raises(SystemExit) as stopped:
        bench(suite, data, out, *more)
    assert not out.exists()
    return str(stopped.value)


@pytest.mark.parametrize("suite", COPIES)
def test_a_suite_from_the_command_to_the_table(suite: str, tmp_path: Path, capsys):
    make, more, tasks = COPIES[suite]
    data, out = make(tmp_path / "data"), tmp_path / "runs"
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    methods = ROWS if suite == "nyud" else ("ST", "MT", "TM+TE")
    bench(suite, data, out, *more, "--methods", *methods)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    runs = read_lines(out / "results.jsonl")
    assert [task["name"] for task in runs[0]["tasks"]] == list(tasks)
    assert {row["method"] for row in runs[0]["rows"]} == set(methods)
    for row in runs[0]["rows"]:
        assert all(math.isfinite(row["metrics"][task]) for task in tasks)
        assert str(tmp_path) not in row["command"]
    added = {name: rows_of(runs, name)[0]["parameters_added"] for name in methods}
    assert added["TM+TE"] == len(tasks) * 2 * (2 + 1) * 16  # in two of four blocks
    page = (out / "table.md").read_text()
    for chosen in ("layout: ", "trunk: vit_tiny (16 channels, 4 blocks", "decoder: conv", "features: quarters"):
        assert chosen in page
    assert "Seed 0 in pictures" in capsys.readouterr().out
    assert (out / "seed-0" / "report.html").stat().st_size > 10_000


def test_edges_of_pascal_are_measured_on_the_regions_of_some_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As published: a prediction that is 1 on the rims of the regions is right, on the images that count."""
    from experiments.dense.training import evaluate

    monkeypatch.setattr(sys.modules["experiments.dense.pascal_context.suite"], "boundary_images", lambda test: test[:1])
    options = PascalChoices(tasks=("saliency", "edges"), edge_protocol="invpt", meters="invpt", size=(32, 64))
    data = pascal_copy(tmp_path / "data")
    one = DiskBench("pascal_context", replace(RECIPE, size=(32, 64)), tmp_path / "out", data, options=options)
    suite = one.load()
    batch = suite.test.batch(slice(0, 2))
    assert batch["regions"][1].eq(255).all()

    class Rims(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            edges = torch.full((len(images), 1, 32, 64), -9.0)
            edges[..., 1:31, 31] = 9.0  # a person beside an aeroplane, at half of the width
            return {"edges": edges, "saliency": edges}

    tasks = suite.tasks[-1:]
    assert evaluate(Rims(), suite.test, tasks)["edges"] > 60  # the outermost pixels are weakened
    metric = tasks[0].metric()
    assert (metric.protocol, metric.truth) == ("invpt", "regions")


def test_what_is_finished_is_used_again(tmp_path: Path, capsys):
    data, out = invpt_copy(tmp_path / "data"), tmp_path / "runs"
    bench("nyud", data, out, "--methods", "TM")
    rows = {path: path.stat().st_mtime_ns for path in (out / "seed-0/rows").iterdir()}
    bench("nyud", data, out, "--methods", "TM")
    assert {path: path.stat().st_mtime_ns for path in (out / "seed-0/rows").iterdir()} == rows
    bench("nyud", data, out, "--methods", "TM", "--loss-weights", "ones")
    assert (out / "seed-0/rows/MT.json").stat().st_mtime_ns != rows[out / "seed-0/rows/MT.json"]
    assert "loss_weights: ones" in (out / "table.md").read_text()


def test_a_decoder_in_which_tasks_meet_in_half_precision_and_in_parts(tmp_path: Path):
    data, out = invpt_copy(tmp_path / "data"), tmp_path / "runs"
    more = ["--decoder", "invpt", "--depth", "6", "--size", "64", "64", "--precision", "bfloat16", "--accumulate", "2"]
    bench("nyud", data, out, *more, "--methods", "TM+TE", "recommended")
    for row in read_lines(out / "results.jsonl")[0]["rows"]:
        assert all(math.isfinite(value) for value in row["metrics"].values())
    assert "decoder: invpt" in (out / "table.md").read_text()


def test_images_labelled_in_part(tmp_path: Path):
    names = ("0001", "0002", "0003", "0004", "0005", "0006")
    data = invpt_copy(tmp_path / "data", names=names)
    lists(data, names[2:], names[:2])
    for path in ("edge/0003.png", "edge/0004.png", "edge/0005.png", "normals/0001.png", "depth/0006.npy"):
        (data / path).unlink()
    assert "of 4 train images have none" in refusal("nyud", data, tmp_path / "no", "--methods", "MT")
    out = tmp_path / "runs"
    few = ("--missing", "leave_out", "--analysis-images")
    with pytest.raises(SystemExit, match="no batch gave a loss for 'edges'"):
        bench("nyud", data, tmp_path / "few", *few, "2", "--methods", "MT")
    bench("nyud", data, out, *few, "4", "--methods", "TM+TE", "MT, even gradients")
    for row in read_lines(out / "results.jsonl")[0]["rows"]:
        assert all(math.isfinite(value) for value in row["metrics"].values())
    curves = json.loads((out / "seed-0/rows/ST-edges.json").read_text())["curves"]
    assert set(curves) == {"edges"}


def disk_bench(data: Path, out: Path, **changes) -> DiskBench:
    return DiskBench(
        "nyud", replace(RECIPE, **changes), out, data, options=NyudChoices(), reading=Reading(kept_every=2)
    )


def test_an_interrupted_row_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unfinished, "train", partial(train, every=1))
    data = invpt_copy(tmp_path / "data")
    found = []
    for out in (tmp_path / "whole", tmp_path / "halves"):
        one = disk_bench(data, out)
        begin_all(one, ignore)
        train_first_steps(one, ignore)
        if out.name == "halves":

            def stop(done: int, total: int) -> None:
                if done >= 5:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                finish(one, "TM+TE", stop)
            assert read_state(one.path_of("TM+TE", "pt"))["run"]["step"] == 3
        finish(one, "TM+TE", ignore)
        found.append(one.read_row("TM+TE")["metrics"])
    assert found[0] == found[1]


def test_rows_see_the_same_images_changed_in_the_same_way(tmp_path: Path):
    data = invpt_copy(tmp_path / "data")
    one, other = disk_bench(data, tmp_path / "a").load(), disk_bench(data, tmp_path / "b").load()
    for mine, theirs in zip(one.train.steps(2, 5, 4), other.train.steps(2, 5, 4), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    late = list(one.train.steps(2, 5, 4, start=3))
    assert torch.equal(late[0]["image"], mine["image"])
    assert [len(batch["image"]) for batch in one.test.in_order(1)] == [1, 1]


def test_workers_read_what_one_process_reads(tmp_path: Path):
    data = invpt_copy(tmp_path / "data")
    alone = disk_bench(data, tmp_path / "a").load().train
    helped = replace(disk_bench(data, tmp_path / "a"), reading=Reading(workers=1)).load().train
    for _ in range(2):  # the workers stay, and take another order
        for mine, theirs in zip(alone.steps(2, 7, 2), helped.steps(2, 7, 2), strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_parts_of_a_batch_make_the_gradient_of_the_whole(tmp_path: Path):
    """Where nothing is normalised over the batch and every image knows as many pixels, parts change nothing."""
    from experiments.dense.branch_point import plain_run
    from experiments.training.run import step

    data = invpt_copy(tmp_path / "data")
    moved = []
    for parts in (1, 2):
        one = disk_bench(data, tmp_path / "a", decoder="linear", accumulate=parts)
        one = replace(one, options=NyudChoices(tasks=("semseg", "normals"), augmentation="mti", size=(48, 64)))
        suite = one.load()
        run = plain_run(one, suite, {})
        batch = next(iter(suite.train.steps(2, 1, 1)))
        batch = {name: value.clone() for name, value in batch.items()}
        batch["semseg"][batch["semseg"] == 255] = 0
        batch["normals"][:] = torch.tensor([0.0, 0.6, 0.8]).view(3, 1, 1)
        losses = step(run, batch)
        moved.append((losses, {name: p.detach().clone() for name, p in run.model.named_parameters()}))
    assert moved[0][0].keys() == moved[1][0].keys()
    for task, loss in moved[0][0].items():
        torch.testing.assert_close(loss, moved[1][0][task])
    first = {name: value for name, value in moved[0][1].items() if name.startswith("heads.")}
    assert first
    for name, value in first.items():
        torch.testing.assert_close(value, moved[1][1][name], atol=2e-4, rtol=0)  # Adam's first step is a sign


def test_a_dry_run_trains_nothing_and_says_what_a_table_takes(tmp_path: Path, capsys):
    data, out = invpt_copy(tmp_path / "data"), tmp_path / "runs"
    bench("nyud", data, out, "--dry-run", "--dry-steps", "2", "--methods", "TM+TE", "recommended", "PCGrad")
    assert [path.name for path in out.iterdir()] == ["dry-run.json"]
    told = json.loads((out / "dry-run.json").read_text())
    for name in ("ST", "MT", "TM+TE", "recommended"):
        row = told["rows"][name]
        assert row["steps"] >= 2
        assert row["step"] > 0
        assert row["hours"] >= row["step"] * 4 / 3600
    assert told["rows"]["PCGrad"].startswith("not tried")
    assert told["choices"]["loss_weights"] == "invpt"
    assert "the whole table, one seed" in capsys.readouterr().out


# --- bad input: said before anything is trained ---


def test_bad_files_are_named_before_training(tmp_path: Path):
    out = tmp_path / "runs"

    def spoilt(name: str, spoil) -> str:
        data = invpt_copy(tmp_path / name)
        spoil(data)
        return refusal("nyud", data, out)

    def cut(data: Path) -> None:
        path = data / "images/0003.png"
        path.write_bytes(path.read_bytes()[:-60])

    assert "images/0003.png cannot be read" in spoilt("cut", cut)
    assert "holds the labels [77]" in spoilt(
        "labels", lambda data: png(data / "segmentation/0003.png", np.full((42, 56), 77, np.uint8))
    )
    assert "depths that are not finite" in spoilt(
        "depth", lambda data: npy(data / "depth/0003.npy", np.full((42, 56), np.nan))
    )
    assert "is 40 x 56, but its picture is 42 x 56" in spoilt(
        "size", lambda data: png(data / "edge/0004.png", np.zeros((40, 56), np.uint8))
    )
    assert "images/0009.png" in spoilt("list", lambda data: lists(data, ("0003", "0009")))
    assert "is in 'train' and in 'test'" in spoilt("both", lambda data: lists(data, ("0003", "0001")))

    def unlabelled(data: Path) -> None:
        for path in (data / "edge").iterdir():
            path.unlink()

    assert "none of the 2 train images has one: choose other tasks" in spoilt("unlabelled", unlabelled)
    normals = mti_copy(tmp_path / "mti")
    npy(normals / "normals/0003.npy", np.full((48, 64, 3), np.nan))
    assert "normals that are not finite" in refusal("nyud", normals, out)


def test_unreadable_files_are_skipped_on_request_and_counted(tmp_path: Path):
    names = ("0001", "0002", "0003", "0004", "0005")
    data, out = invpt_copy(tmp_path / "data", names=names), tmp_path / "runs"
    lists(data, names[2:], names[:2])
    for path in (data / "depth/0003.npy", data / "images/0002.png"):
        path.write_bytes(path.read_bytes()[:-60])
    bench("nyud", data, out, "--unreadable", "skip", "--methods", "MT")
    row = rows_of(read_lines(out / "results.jsonl"), "MT")[0]
    assert row["skipped"] == {"train": 1, "test": 1}
    assert "skipped as unreadable: 1 train, 1 test images" in (out / "table.md").read_text()


def test_other_benchmarks_are_refused(tmp_path: Path):
    out = tmp_path / "runs"
    full = invpt_copy(tmp_path / "full", 480, 640, names=("0001", "0003"))
    assert "480 x 640 where 425 x 560 is meant" in refusal("nyud", full, out)
    assert "its suite is nyud13" in refusal("nyud", mtan_copy(tmp_path / "mtan", (32, 48)), out)
    names = tuple(f"{number:04d}" for number in range(1, 11))
    few = invpt_copy(tmp_path / "few", names=names)
    lists(few, names[:5], names[5:])
    for name in names:
        png(few / f"segmentation/{name}.png", maps(name)["labels"] % 14)
    assert "13 classes where 40 are meant" in refusal("nyud", few, out)
    assert "does not exist" in refusal("nyud", tmp_path / "nowhere", out)


def test_a_building_without_a_domain(tmp_path: Path):
    data = taskonomy_copy(tmp_path / "data")
    for point, view in ((0, 0), (2, 1), (10, 0)):
        path_of(data, "omnidata", "normal", "hanson", point, view).unlink()
    said = refusal("taskonomy", data, tmp_path / "runs", "--size", "32", "32")
    assert "hanson has no normal" in said


def test_pictures_that_do_not_fit(tmp_path: Path):
    data = pascal_copy(tmp_path / "data", (30, 600))
    assert "do not fit into 512 x 512" in refusal("pascal_context", data, tmp_path / "runs")
    assert PASCAL_TRAIN


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backbone", "vit_huge_indeed"], "has no model of that name"),
        (["--backbone", "resnet18"], "trunks here are plain vision transformers"),
        (["--weights", "none.safetensors", "--depth", "12", "--width", "192"], "is no file"),
        (["--weights", "hub"], "Add --weights none"),
        (["--batch", "3"], "there are 2 images to train on"),
        (["--accumulate", "3"], "Give 1 to 2"),
        (["--size", "50", "64"], "patches of 16 pixels do not tile it"),
        (["--tasks", "depth"], "needs at least two"),
        (["--tasks", "depth", "parts"], "there is no 'parts'"),
        (["--methods", "TX"], "no 'TX'"),
        (["--device", "quantum"], "give cpu, cuda or cuda:N"),
        (["--fraction", "0"], "above 0 and up to 1"),
        (["--held-out", "val"], "has no such split"),
        (["--expand-at", "4"], "give a step before the last"),
        (["--decoder", "taskprompter"], "4 blocks make none"),
    ],
)
def test_options_that_do_not_fit(options: list[str], said: str, tmp_path: Path):
    assert said in refusal("nyud", invpt_copy(tmp_path / "data"), tmp_path / "runs", *options)


def test_all_jobs_of_a_disk_suite_are_done_once(tmp_path: Path):
    one = disk_bench(invpt_copy(tmp_path / "data"), tmp_path / "runs")
    names = {job.name for job in jobs_of(one, ["ST", "MT", "TM"])}
    assert names == {"start", "MT, first steps", "cost", "MT", "TM", *(f"ST {task}" for task in one.loss_weights)}


def test_two_processes_share_every_batch(tmp_path: Path):
    """As `accelerate launch` and `torchrun` start them."""
    data, out = invpt_copy(tmp_path / "data"), tmp_path / "runs"
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "experiments"]
    command = ["bench", "nyud", "--data", str(data), "--out", str(out), *TRUNK, *SHORT, *FAST, "--methods", "TM+TE"]
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, *launched, *command], cwd=root, capture_output=True, text=True, timeout=200, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    rows = read_lines(out / "results.jsonl")[0]["rows"]
    assert {row["method"] for row in rows} == {"ST", "MT", "TM+TE"}
    for row in rows:
        assert row["made_with"]["processes"] == 2
        assert all(math.isfinite(value) for value in row["metrics"].values())
    assert run.stdout.count("Seed 0 in pictures") == 1
