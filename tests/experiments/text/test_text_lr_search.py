"""Training that diverges: a trial of tuning is then the worst one, a row of the table stops with what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments.runner.jobs import Job
from experiments.text import TextRecipe, analyse, build
from experiments.text import lr_search as tuning
from experiments.text.data.metrics import ACCURACY
from experiments.text.experiment import TextBench
from experiments.text.glue import glue_task, read_glue
from experiments.text.lr_search import attempt, tune
from experiments.text.rows import finish, first_steps, single_task
from experiments.training.divergence import DivergedError

TASKS = tuple(glue_task(name) for name in ("CoLA", "RTE"))


pytestmark = pytest.mark.usefixtures("cache")


def ignore(done: int, total: int) -> None:
    pass


@pytest.fixture
def bench(data: Path, trunk: str, tmp_path: Path) -> TextBench:
    recipe = TextRecipe(trunk=trunk, steps=4, batch=4, analysis_samples=4, learning_rate=1e-3, expand_after=0.5)
    return TextBench("glue", TASKS, partial(read_glue, data), recipe, tmp_path)


def test_a_rate_that_diverges_is_the_worst_and_the_others_go_on(bench: TextBench, monkeypatch: pytest.MonkeyPatch):
    ran: list[str] = []

    def run_here(jobs: Sequence[Job]) -> None:
        for job in jobs:
            ran.append(job.name)
            job.work(*job.arguments, ignore)

    monkeypatch.setattr(tuning, "RATES", (1e30, 1.0))
    found = tune(bench, run_here, ("MT", "ST"))
    assert found.recipe.learning_rate == 1e-3
    assert found.single_rates == {"CoLA": 1e-3, "RTE": 1e-3}
    assert found.diverged == ("1e+27", "ST CoLA at 1e+27", "ST RTE at 1e+27")
    assert "1e+27" not in found.scores
    assert "0.001" in found.scores
    assert "Diverged, and counted as the worst: 1e+27, ST CoLA at 1e+27, ST RTE at 1e+27." in found.remark()
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["diverged"] == list(found.diverged)
    high = replace(bench, out=bench.out / "1e+27-square-root")
    for row in ("MT", "ST RTE"):
        assert high.read_row(row)["diverged"].endswith("at step 2: lower the learning rate.")

    ran.clear()
    assert tune(bench, run_here, ("MT", "ST")) == found
    assert ran == []  # a trial that diverged is not tried again
    monkeypatch.setattr(tuning, "RATES", (1e30,))
    with pytest.raises(
        FloatingPointError, match=r"MT diverged with everything that was tried \(1e\+27\). Give a lower"
    ):
        tune(bench, run_here, ("MT",))


def test_a_row_of_the_table_stops_with_what_to_do(bench: TextBench):
    high = replace(bench, recipe=replace(bench.recipe, learning_rate=1e27))
    says = "loss of task '.*' is nan at step 2: lower the learning rate"
    with pytest.raises(FloatingPointError, match=says):
        single_task(high, TASKS[0], ignore)
    with pytest.raises(ValueError, match=says):  # which the command line prints without a traceback
        first_steps(high, ignore)
    assert not high.path_of("ST CoLA", "json").exists()


def test_an_error_of_another_kind_stops_tuning_as_well(bench: TextBench):
    def refused(bench: TextBench, report: Any) -> None:
        raise ValueError("no such file")

    with pytest.raises(ValueError, match="no such file"):
        attempt(refused, (bench,), "MT", None, ignore)
    assert not bench.path_of("MT", "json").exists()


def test_a_trial_that_diverges_leaves_no_state_to_go_on_from(bench: TextBench):
    def diverging(bench: TextBench, report: Any) -> None:
        raise DivergedError("the loss is nan")

    bench.path_of("MT", "pt").parent.mkdir(parents=True)
    bench.path_of("MT", "pt").write_bytes(b"state")
    attempt(diverging, (bench,), "MT", None, ignore)
    assert bench.read_row("MT")["diverged"] == "the loss is nan"
    assert not bench.path_of("MT", "pt").exists()
    attempt(finish, (bench, "TM"), "TM", "MT", ignore)
    assert bench.read_row("TM")["diverged"] == "the loss is nan"  # what it would have gone on from


def test_divergence_is_told_from_other_errors_where_it_is_first_seen(bench: TextBench):
    model = build(bench.recipe.trunk, TASKS, 0)
    nn.init.constant_(model.heads["RTE"].predict.bias, math.nan)  # type: ignore[union-attr]
    with pytest.raises(DivergedError, match="loss of task 'RTE' is nan in the analysis"):
        analyse(model, bench.load(), bench.recipe)
    with pytest.raises(DivergedError, match="accuracy: predictions are not finite"):
        ACCURACY(torch.full((4, 2), math.nan), torch.ones(4))
