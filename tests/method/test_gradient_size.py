"""How large each task's gradient is: against a literal loop in float64, and what it tells about the weights of the losses."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import reference
import torch
from models import make_batches, task_losses, tiny_vit, torch_encoder_multitask

import dtme


def literal(model, batches, block: str, tasks: tuple[str, ...]) -> list[float]:
    sizes = []
    for task in tasks:
        own = [batch for batch in batches if task in batch["targets"]]
        samples = reference.samples_at(model, block, task_losses, own, (task,), 0)
        tokens = [gradient for sample in samples for gradient in sample.gradient[task][sample.valid]]
        sizes.append(math.sqrt(sum(float(gradient @ gradient) for gradient in tokens) / len(tokens)))
    return sizes


@pytest.mark.parametrize("make", [tiny_vit, lambda: torch_encoder_multitask(True)], ids=["vit", "encoder with padding"])
@pytest.mark.parametrize("apart", [False, True], ids=["all tasks", "disjoint"])
def test_sizes_equal_the_literal_loop(make, apart: bool):
    model = make().double().eval()
    first, *others = make_batches(model, (1,))[0]["targets"]
    batches = make_batches(model, (3, 2), present=((first,), others) if apart else None)
    report = dtme.analyze(model, task_losses, batches)
    expected = [literal(model, batches, block, report.tasks) for block in report.blocks]
    torch.testing.assert_close(report.gradient_size, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_even_weights_make_the_gradients_equally_large():
    model = tiny_vit().double().eval()
    batches = make_batches(model, (4, 3))
    before = dtme.analyze(model, task_losses, batches)
    weights = before.even_weights()
    assert math.prod(weights.values()) == pytest.approx(1)

    def reweighted(model, batch):
        return {task: weights[task] * loss for task, loss in task_losses(model, batch).items()}

    after = dtme.analyze(model, reweighted, batches)
    assert list(after.even_weights().values()) == pytest.approx([1] * len(weights))
    torch.testing.assert_close(after.range_rate, before.range_rate, rtol=0, atol=0)  # weights turn no gradient around


def test_a_loss_that_drowns_the_others_is_told():
    model = tiny_vit()
    batches = make_batches(model, (4,))
    report = dtme.analyze(model, task_losses, batches)
    even = report.even_weights()

    def losses(model, batch, factor: float):
        return {
            task: even[task] * (factor if task == "depth" else 1) * own
            for task, own in task_losses(model, batch).items()
        }

    told = str(dtme.analyze(model, lambda model, batch: losses(model, batch, 8.0), batches))
    assert "geometric mean 1): depth 4, " in told
    assert "They are uneven" in told
    assert "even_weights()" in told
    assert "uneven" not in str(dtme.analyze(model, lambda model, batch: losses(model, batch, 1.0), batches))


def test_reports_of_earlier_versions_hold_none(tmp_path: Path):
    report = dtme.analyze(tiny_vit(), task_losses, make_batches(tiny_vit(), (2,)))
    report.save(tmp_path / "report.json")
    again = dtme.ConflictReport.load(tmp_path / "report.json")
    assert again.even_weights() == report.even_weights()
    data = json.loads((tmp_path / "report.json").read_text())
    del data["digest"]  # which tells files that were changed
    (tmp_path / "wrong.json").write_text(json.dumps({**data, "gradient_size": [[1.0, 2.0]]}))
    with pytest.raises(ValueError, match=r"wrong.json: gradient_size has shape \(1, 2\), expected \(\d, 3\)"):
        dtme.ConflictReport.load(tmp_path / "wrong.json")
    del data["gradient_size"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    old = dtme.ConflictReport.load(tmp_path / "old.json")
    assert old.gradient_size is None
    assert "Size of the gradients" not in str(old)
    with pytest.raises(ValueError, match="holds no gradient sizes"):
        old.even_weights()


def test_a_task_without_a_gradient_is_named():
    report = dtme.analyze(tiny_vit(), task_losses, make_batches(tiny_vit(), (2,)))
    assert report.gradient_size is not None
    sizes = report.gradient_size.clone()
    sizes[0, 1] = 0
    silent = dataclasses.replace(report, gradient_size=sizes)
    with pytest.raises(ValueError, match=f"gradient of task '{report.tasks[1]}' is zero at some block"):
        silent.even_weights()
    assert "Size of the gradients" not in str(silent)
