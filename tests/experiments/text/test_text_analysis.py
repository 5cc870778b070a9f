"""Conflicts of tasks that share no sentence, and of some that do, against the literal recomputation in float64."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

import dtme
from experiments.text import TextRecipe, TextSuite, analyse, build, load, task_losses
from experiments.text.analysis import analysis_batches
from experiments.text.data.suite import Batch
from experiments.text.glue import glue_task, read_glue
from experiments.text.trunk import MINILM

NAMES = ("CoLA", "STS-B", "RTE")
TASKS = tuple(glue_task(name) for name in NAMES)


@pytest.fixture(scope="module")
def suite(cache: None, data: Path, trunk: str) -> TextSuite:
    return load(TASKS, partial(read_glue, data), trunk)


def losses_of(suite: TextSuite, shares: dict[int, int]):
    """Losses of a batch; of a task in `shares` also that of another one, which reads the same sentences in the same pass."""

    def losses(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        own: Batch = batch["text"]
        task = int(own.tasks[0])
        if task not in shares:
            return task_losses(model, suite, own)
        names = [suite.tasks[place].name for place in (task, shares[task])]
        outputs: Any = model(**own.inputs)
        numbers = torch.linspace(-1, 1, len(own), dtype=outputs[names[1]].dtype)
        return {
            names[0]: nn.functional.cross_entropy(outputs[names[0]], own.targets.long()),
            names[1]: nn.functional.mse_loss(outputs[names[1]].squeeze(1), numbers),
        }

    return losses


def given(batches: list[Batch]) -> list[dict[str, Any]]:
    """Batches as the literal recomputation takes them: it wants to know where the padding is."""
    return [
        {"text": batch, "inputs": (batch.inputs["input_ids"], batch.inputs["attention_mask"] == 0)} for batch in batches
    ]


def assert_equal(report: dtme.ConflictReport, expected: reference.Conflicts, samples: int) -> None:
    assert report.samples == expected.samples == samples
    assert list(report.range_rank) == expected.range_rank
    assert [[kind != "disjoint" for kind in row] for row in report.pairing] == expected.shared.tolist()
    close = {"rtol": 0, "atol": 1e-9, "check_dtype": False}
    torch.testing.assert_close(report.range_rate, expected.range_rate, **close)
    torch.testing.assert_close(report.null_rate, expected.null_rate, **close)


@pytest.mark.parametrize("variance_ratio", [1.0, 100.0])
def test_disjoint_tasks_of_unequal_size_equal_the_recomputation(suite: TextSuite, trunk: str, variance_ratio: float):
    model = build(trunk, TASKS, 0).double()
    named = [(0, range(4)), (1, range(3)), (2, range(2)), (0, range(4, 6)), (2, range(5, 6))]
    batches = given([suite.batch([(task, row) for row in rows]) for task, rows in named])
    losses = losses_of(suite, {})
    report = dtme.analyze(model, losses, batches, variance_ratio=variance_ratio)
    assert report.tasks == NAMES
    expected = reference.measure(model, losses, batches, report.blocks, NAMES, variance_ratio)
    assert_equal(report, expected, 12)
    assert not expected.shared[0, 1]
    assert "share no input" in str(report)


def test_some_tasks_share_their_sentences_and_others_do_not(suite: TextSuite, trunk: str):
    model = build(trunk, TASKS, 0).double()
    losses = losses_of(suite, {0: 1})  # CoLA's sentences have a number as well, RTE's have neither
    batches = given([suite.batch([(0, row) for row in range(4)]), suite.batch([(2, row) for row in range(3)])])
    report = dtme.analyze(model, losses, batches)
    expected = reference.measure(model, losses, batches, report.blocks, report.tasks, 100.0)
    assert_equal(report, expected, 7)
    assert report.pairing == (("", "shared", "disjoint"), ("shared", "", "disjoint"), ("disjoint", "disjoint", ""))


def test_the_engine_analyses_equally_many_sentences_of_each_task_in_batches_of_their_own(suite: TextSuite, trunk: str):
    recipe = TextRecipe(trunk=trunk, batch=4, steps=2, analysis_samples=10)
    batches = analysis_batches(suite, recipe, seed=1)
    assert [int(batch.tasks.unique()) for batch in batches] == [0] * 3 + [1] * 3 + [2] * 3
    assert sum(len(batch) for batch in batches) == 30
    model = build(trunk, TASKS, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told: list[tuple[int, int]] = []
    report = analyse(model, suite, recipe, seed=1, advance=lambda done, total: told.append((done, total)))
    assert told[-2:] == [(18, 18), (19, 18)]  # one pass more counts FLOPs
    assert report.samples == 30
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    again = analyse(model, suite, recipe, seed=1)
    assert torch.equal(report.range_rate, again.range_rate)
    plan = report.plan(fraction=0.5)
    assert len(plan.modulate) == len(plan.expand) == 2
    assert plan.parameters(16) == 2 * 3 * 3 * 16


def test_a_plan_on_the_real_minilm_adds_what_the_formula_says(data: Path, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path))
    suite = load(TASKS[:2], partial(read_glue, data), MINILM)
    model = build(MINILM, TASKS[:2], 0)
    report = analyse(model, suite, TextRecipe(batch=4, steps=2, analysis_samples=4))
    assert report.blocks == tuple(f"trunk.encoder.layer.{d}" for d in range(6))
    assert report.widths == (384,) * 6
    dtme.apply(model, report.plan())
    assert sum(p.numel() for _, p in dtme.added_parameters(model)) == 3 * 2 * 3 * 384
    batch = suite.batch([(0, 1), (1, 2), (0, 3)])
    losses = task_losses(model, suite, batch)
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for _, p in dtme.added_parameters(model))
