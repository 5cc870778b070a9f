"""Gradients that are zero, that float16 makes zero, or that are nothing but rounding: none of them is taken for conflict."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import Batch, make_batches, task_losses, tiny_vit
from torch import Tensor, nn

import dtme

TASKS = ("depth", "semseg", "scene")


def test_a_task_without_any_gradient_is_an_error_that_names_it():
    model = tiny_vit(TASKS)
    nn.init.zeros_(model.heads["semseg"].project.weight)  # as many heads begin
    with pytest.raises(ValueError, match=r"the gradient of task 'semseg' is zero.*in all 5 samples.*steps first"):
        dtme.analyze(model, task_losses, make_batches(model, (3, 2)))


def test_a_batch_without_a_gradient_of_a_task_is_no_error():
    model = tiny_vit(TASKS)

    def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        found = task_losses(model, batch)
        return {**found, "scene": found["scene"] * float(len(batch["targets"]["scene"]) > 2)}

    report = dtme.analyze(model, losses, make_batches(model, (3, 2)))
    assert all(0.2 < share < 0.6 for share in report.zero_share)


class Half(nn.Module):
    """A vision transformer whose heads' outputs leave float16."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        dtype = next(self.parameters()).dtype
        return {task: output.float() for task, output in self.model(*(own.to(dtype) for own in inputs)).items()}


@pytest.mark.parametrize("factor", [1.0, 2.0**-10, 2.0**-20, 2.0**10])
def test_float16_gives_the_rates_of_float32_however_small_the_losses(factor: float):
    plain = Half(tiny_vit(TASKS))
    batches = make_batches(plain.model, (6, 6, 6))

    def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {task: factor * loss for task, loss in task_losses(model, batch).items()}

    expected = dtme.analyze(plain, losses, batches)
    report = dtme.analyze(copy.deepcopy(plain).half(), losses, batches)
    assert max(report.zero_share) == pytest.approx(max(expected.zero_share), abs=0.01)
    for name in ("range_rate", "null_rate"):
        torch.testing.assert_close(getattr(report, name), getattr(expected, name), rtol=0, atol=0.04)
    torch.testing.assert_close(report.gradient_size, expected.gradient_size, rtol=0.02, atol=0)


def test_autocast_to_float16_underflows_as_little():
    model = tiny_vit(TASKS)
    batches = make_batches(model, (6, 6))

    def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {task: 2.0**-14 * loss.float() for task, loss in task_losses(model, batch).items()}

    def autocast(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.float16):
            return losses(model, batch)

    expected, report = dtme.analyze(model, losses, batches), dtme.analyze(model, autocast, batches)
    torch.testing.assert_close(report.range_rate, expected.range_rate, rtol=0, atol=0.04)
    torch.testing.assert_close(report.gradient_size, expected.gradient_size, rtol=0.02, atol=0)


def test_a_gradient_that_is_infinite_whatever_the_scale_is_still_an_error():
    model = tiny_vit(TASKS)

    def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        found = task_losses(model, batch)
        return {**found, "depth": (found["depth"] * 0).sqrt()}

    with pytest.raises(ValueError, match=r"gradient of task 'depth' .* is not finite"):
        dtme.analyze(Half(model).half(), lambda m, b: losses(m, b), make_batches(model, (2,)))


class TwoChannels(nn.Module):
    """Two channels behind a layer norm are 1 and -1, whatever they were: nothing in front of it matters, but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(2, 1, 8, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(2)
        self.heads = nn.ModuleDict({task: nn.Linear(2, 1) for task in "ab"})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            tokens = block(tokens)
        return {task: head(self.norm(tokens)) for task, head in self.heads.items()}


def two_losses(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    return {task: (out - place - 1).square().mean() for place, (task, out) in enumerate(model(tokens).items())}


def test_gradients_at_the_level_of_rounding_are_no_conflicts():
    model, tokens = TwoChannels(), 300 * torch.randn(16, 5, 2)
    report = dtme.analyze(model, two_losses, [tokens])
    assert min(report.zero_share) > 0.95  # the others have two channels that are nearly the same
    assert any("left out" in note and "blocks.0" in note for note in report.notes)
    apart = 300 * (1 + torch.rand(16, 5, 1)) * torch.tensor([1.0, -1.0])
    with pytest.raises(ValueError, match="the gradient of task 'a' is zero, or no more than rounding"):
        dtme.analyze(model, two_losses, [apart])
    exact = dtme.analyze(TwoChannels().double(), two_losses, [torch.randn(16, 5, 2, dtype=torch.float64)])
    assert max(exact.zero_share) == 0  # little as they matter, in float64 and near the norm's epsilon these are known


def test_tokens_that_are_zero_matter_all_the_same():
    """Tokens of a class or a mask that begin at zero: what they are multiplied by tells nothing of what they move."""
    model = tiny_vit(TASKS)
    nn.init.zeros_(model.positions)
    nn.init.zeros_(model.class_token)
    report = dtme.analyze(model, task_losses, make_batches(model, (6,)), blocks=["blocks.0"])
    moved = dtme.analyze(tiny_vit(TASKS), task_losses, make_batches(model, (6,)), blocks=["blocks.0"])
    assert report.zero_share == moved.zero_share


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6, 1e20])
def test_small_and_large_losses_are_no_rounding(scale: float):
    model = tiny_vit(TASKS)
    batches = make_batches(model, (3, 2))

    def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {task: scale * loss for task, loss in task_losses(model, batch).items()}

    plain, scaled = dtme.analyze(model, task_losses, batches), dtme.analyze(model, losses, batches)
    torch.testing.assert_close(scaled.range_rate, plain.range_rate, rtol=0, atol=1e-3)
    assert scaled.zero_share == pytest.approx(plain.zero_share)
