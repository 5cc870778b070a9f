"""Which finished rows are used again: those of the same sentences, the same trunk and the same length, wherever the files are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from experiments.runner.resume import write_state
from experiments.text import MINILM, TextRecipe
from experiments.text import pretraining as beginnings
from experiments.text.data.fingerprints import digest_of_trunk
from experiments.text.experiment import TextBench
from experiments.text.glue import glue_task, read_glue
from experiments.text.pretraining import plateau
from experiments.text.results import collect
from experiments.text.rows import FIRST, finish, jobs_of
from experiments.training import unfinished
from experiments.training.run import train

NAMES = ("CoLA", "RTE")
LONG = "MT as long as the dearest"
MEASURES = {"CoLA": {"MCC": 1.0}, "RTE": {"accuracy": 1.0}}


pytestmark = pytest.mark.usefixtures("cache")


def ignore(done: int, total: int) -> None:
    pass


@pytest.fixture
def bench(data: Path, trunk: str, tmp_path: Path) -> TextBench:
    recipe = TextRecipe(trunk=trunk, steps=10, batch=4, expand_after=0.0, learning_rate=1e-3)
    tasks = tuple(glue_task(name) for name in NAMES)
    return TextBench("glue", tasks, partial(read_glue, data), recipe, tmp_path / "seed")


def finished(bench: TextBench, steps: dict[str, float]) -> None:
    """Write down every row, with these costs of a step, as if it had been trained."""
    bench.write_row("start", {})
    bench.write_row(FIRST, {"analysis_seconds": 0.0, "analysis_steps": 0.0})
    write_state(bench.out / "start.pt", {})
    costs = dict.fromkeys(steps, 1.0)
    bench.write_row("cost", {"step": steps, "inference": costs, "added": dict.fromkeys(steps, 0), "parameters": 1})
    for name in steps.keys() - {LONG}:
        bench.write_row(name, {"measures": MEASURES, "seconds": 1.0, "steps": 10})


def changed(data: Path, folder: Path, task: str, name: str, old: str, new: str) -> Path:
    """A copy of the files with one thing changed in its first place."""
    shutil.copytree(data, folder)
    path = folder / task / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return folder


def test_rows_of_other_sentences_are_not_taken_for_ones_own(bench: TextBench, data: Path, tmp_path: Path):
    finished(bench, {"MT": 1.0, "TM": 1.2})
    assert jobs_of(bench, ("MT", "TM")) == []

    def elsewhere(folder: Path) -> TextBench:
        return replace(bench, read=partial(read_glue, folder))

    assert jobs_of(elsewhere(Path(shutil.copytree(data, tmp_path / "copy"))), ("MT", "TM")) == []
    first = (data / "CoLA" / "train.tsv").read_text().splitlines()[0].split("\t")[3]
    of_dev = (data / "CoLA" / "dev.tsv").read_text()[:6]
    others = [
        changed(data, tmp_path / "sentence", "CoLA", "train.tsv", first, f"{first} too"),
        changed(data, tmp_path / "target", "CoLA", "dev.tsv", of_dev, f"src\t{1 - int(of_dev[4])}\t"),
    ]
    for folder in others:
        assert [job.name for job in jobs_of(elsewhere(folder), ("MT", "TM"))] == [
            *("sentences", "start", FIRST, "cost", "MT", "TM")
        ]


def test_a_training_sentence_that_is_cut_away_makes_no_difference(bench: TextBench, data: Path, tmp_path: Path):
    few = replace(bench, recipe=replace(bench.recipe, cut=10))
    texts = read_glue(data, few.tasks[0])["train"].texts
    used = few.load().train["CoLA"]
    few.write_row("MT", {})
    kept = []
    for row, (text,) in enumerate(texts):
        folder = changed(data, tmp_path / str(row), "CoLA", "train.tsv", f"\t\t{text}\n", f"\t\t{text} too\n")
        kept.append(replace(few, read=partial(read_glue, folder)).is_done("MT"))
    assert kept.count(False) == len(used) == 10


def with_other_weights(folder: Path, trunk: str) -> str:
    shutil.copytree(trunk, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_trunks_in_folders_of_one_name_are_told_apart_by_their_files(
    bench: TextBench, trunk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = str(shutil.copytree(trunk, tmp_path / "a" / "checkpoint"))
    same = str(shutil.copytree(trunk, tmp_path / "b" / "checkpoint"))
    other = with_other_weights(tmp_path / "c" / "checkpoint", trunk)
    one, two, three = (
        replace(bench, recipe=replace(bench.recipe, trunk=trunk, start_steps=5)) for trunk in (first, same, other)
    )
    one.write_row("MT", {})
    assert one.is_done("MT")
    assert two.is_done("MT")
    assert not three.is_done("MT")
    keys: list[str] = []
    monkeypatch.setattr(beginnings, "cached", lambda key, made: keys.append(key) or {})
    for own in (one, two, three):
        plateau(own, own.load(), ignore)
    assert keys[0] == keys[1] != keys[2]
    (tmp_path / "a" / "checkpoint" / "config.json").write_text("{}")
    assert not one.is_done("MT")  # though this process has taken the digest before
    assert digest_of_trunk(MINILM) is None


def test_a_dearer_row_makes_mt_as_long_as_the_dearest_longer(bench: TextBench):
    finished(bench, {"MT": 1.0, LONG: 1.0, "Norms per task": 1.5})
    finish(bench, LONG, ignore)
    assert bench.read_row(LONG)["steps"] == 15
    methods = ("MT", LONG, "Norms per task")
    assert jobs_of(bench, methods) == []

    added = {job.name: job for job in jobs_of(bench, (*methods, "LoRA per task"))}
    assert added.keys() == {"sentences", "cost", LONG, "LoRA per task"}
    assert "cost" in added[LONG].after  # what it lasts is known then
    steps = {"MT": 1.0, LONG: 1.0, "Norms per task": 1.4, "LoRA per task": 3.0}
    finished(bench, steps)
    rows = collect(bench, bench.load(), tuple(steps), command="", seconds=1.0)["rows"]
    shown = {row["method"]: (row["steps"], row["wall_clock_ratio"]) for row in rows}
    assert shown[LONG] == (15, 1.5)  # what it was trained for, and not what it ought to have been
    assert [job.name for job in jobs_of(bench, tuple(steps))] == ["sentences", LONG]

    begun: list[int] = []
    for _ in range(2):
        finish(bench, LONG, lambda done, total: begun.append(total))
        assert bench.read_row(LONG)["steps"] == 30
        assert begun == [30, 30]  # at step 25 and at the end, and not once more the second time
    assert jobs_of(bench, tuple(steps)) == []


def test_an_unfinished_row_of_another_length_is_begun_anew(bench: TextBench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unfinished, "KEPT_EVERY", 2)
    monkeypatch.setattr(unfinished, "train", partial(train, every=1))
    finished(bench, {"MT": 1.0, LONG: 1.0, "TM": 1.2})

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(bench, LONG, stop)
    finished(bench, {"MT": 1.0, LONG: 1.0, "TM": 0.9})
    begun: list[int] = []
    finish(bench, LONG, lambda done, total: begun.append(done))
    assert begun == list(range(1, 11))
