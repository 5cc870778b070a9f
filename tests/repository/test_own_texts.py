"""The example with CSV files of one's own: it runs, it is short, and what it saves is what it trained."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
import torch
from tiny_text import WORDS, make_trunk

import dtme
import own_texts
from experiments import text


def write(folder: Path) -> None:
    draw = random.Random(0)
    columns = {"topic": ("text", "label"), "same": ("question", "answer", "label"), "stars": ("text", "stars")}
    for task, head in columns.items():
        (folder / task).mkdir(parents=True)
        for name, rows in (("train", 24), ("dev", 12)):
            with (folder / task / f"{name}.csv").open("w", newline="") as file:
                out = csv.writer(file)
                out.writerow(head)
                for _ in range(rows):
                    words = [", ".join(draw.choice(WORDS) for _ in range(3)) for _ in head[:-1]]
                    last = {"topic": draw.choice(("sport", "trade", "science")), "same": draw.choice(("no", "yes"))}
                    out.writerow([*words, last.get(task, f"{draw.uniform(1, 5):.1f}")])


def test_three_tasks_from_csv_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "data")
    trunk = make_trunk(tmp_path / "trunk")
    found = own_texts.main(str(tmp_path / "data"), trunk, str(tmp_path / "out"), steps=12)
    assert {task: set(own) for task, own in found.items()} == {
        "topic": {"accuracy"},
        "same": {"accuracy", "F1"},
        "stars": {"Pearson", "Spearman"},
    }
    assert "share no input" in capsys.readouterr().out
    tasks = (
        text.classes("topic", ("sport", "trade", "science")),
        text.classes("same", ("no", "yes"), text=("question", "answer")),
        text.number("stars", target="stars", bounds=(1, 5)),
    )
    suite = text.load(tasks, lambda task: text.read_folder(tmp_path / "data", task), trunk)
    with torch.random.fork_rng():
        fresh = text.build(trunk, tasks, seed=99)
    dtme.load_pretrained(fresh, tmp_path / "out")
    assert text.evaluate(fresh, suite) == found


def test_it_is_as_short_as_promised():
    code = Path(own_texts.__file__).read_text().split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) < 30
