"""The null hypothesis beside every rate: gradients of different samples, against a literal recomputation."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import reference
import torch
from models import make_batches, task_losses, tiny_vit, torch_encoder_multitask

import dtme


def literal(model, batches, blocks, tasks, spaces) -> dict[str, torch.Tensor]:
    """Rates between sample `s + i` of task i and sample `s + j` of task j of a batch, token by token, in both spaces."""
    rates = {space: torch.full((len(blocks), len(tasks), len(tasks)), torch.nan).double() for space in spaces}
    for d, block in enumerate(blocks):
        own = [reference.samples_at(model, block, task_losses, [batch], tasks, 0) for batch in batches]
        for space, onto in spaces.items():
            rates[space][d].fill_diagonal_(0)
            for i, j in combinations(range(len(tasks)), 2):
                conflicting = counted = 0
                for samples in own:
                    if (i - j) % len(samples) == 0:
                        continue
                    for s in range(len(samples)):
                        first = samples[(s + i) % len(samples)].gradient[tasks[i]]
                        second = samples[(s + j) % len(samples)].gradient[tasks[j]]
                        for g, h in zip(first, second, strict=True):
                            if not reference.is_zero(g) and not reference.is_zero(h):
                                counted += 1
                                conflicting += reference.disagree(onto[d], g, h)
                rates[space][d, i, j] = rates[space][d, j, i] = conflicting / counted if counted else torch.nan
    return rates


@pytest.mark.parametrize("make", [tiny_vit, lambda: torch_encoder_multitask(True)], ids=["vit", "encoder with padding"])
@pytest.mark.parametrize("sizes", [(5, 4), (3, 2), (2,)])
def test_chance_equals_the_literal_loop(make, sizes: tuple[int, ...]):
    model = make().double().eval()
    batches = make_batches(model, sizes)
    report = dtme.analyze(model, task_losses, batches)
    projectors = []
    for block in report.blocks:
        samples = reference.samples_at(model, block, task_losses, batches, report.tasks, 0)
        projectors.append(reference.projectors(reference.second_moment(samples), 100.0)[1:])
    spaces = {space: [pair[place] for pair in projectors] for place, space in enumerate(("range", "null"))}
    expected = literal(model, batches, report.blocks, report.tasks, spaces)
    for space in ("range", "null"):
        found = getattr(report, f"{space}_chance")
        torch.testing.assert_close(found, expected[space], rtol=0, atol=1e-9, equal_nan=True)


def test_alone_in_its_batch_a_sample_has_no_other_to_be_held_against():
    report = dtme.analyze(tiny_vit(), task_losses, make_batches(tiny_vit(), (1, 1)))
    assert report.range_chance is not None
    assert bool(report.range_chance.isnan().sum((1, 2)).eq(6).all())
    assert "     -" in str(report)


def test_gradients_that_agree_by_their_place_alone_agree_as_much_by_chance():
    """Two tasks whose gradients never change from sample to sample: rate and chance are one and the same."""
    model = tiny_vit().double()
    (batch,) = make_batches(model, (1,))
    repeated = {
        "inputs": tuple(given.expand(4, *given.shape[1:]) for given in batch["inputs"]),
        "targets": {task: target.expand(4, *target.shape[1:]) for task, target in batch["targets"].items()},
    }
    report = dtme.analyze(model, task_losses, [repeated])
    torch.testing.assert_close(report.range_chance, report.range_rate, check_dtype=False)
    torch.testing.assert_close(report.null_chance, report.null_rate, check_dtype=False)


def test_a_file_keeps_chance_and_an_older_file_has_none(tmp_path: Path):
    report = dtme.analyze(tiny_vit(), task_losses, make_batches(tiny_vit(), (2, 2)))
    path = tmp_path / "report.json"
    report.save(path)
    again = dtme.ConflictReport.load(path)
    for name in ("range_chance", "null_chance", "range_chance_halfwidth", "null_chance_halfwidth"):
        torch.testing.assert_close(getattr(again, name), getattr(report, name), equal_nan=True, check_dtype=False)
    data = json.loads(path.read_text())
    older = {key: value for key, value in data.items() if "chance" not in key and key != "digest"}
    path.write_text(json.dumps(older))
    assert dtme.ConflictReport.load(path).range_chance is None
    assert dtme.ConflictReport.load(path).range_chance_score() is None
    assert "chance" in str(dtme.ConflictReport.load(path))
