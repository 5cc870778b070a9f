"""Backward passes of an analysis: both ways give the same gradients, and the faster one is taken where there is a choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtme
from dtme import backward as backward_module
from dtme.backward import BackwardPasses, batched, one_by_one
from dtme.blocks import find_blocks
from dtme.capture import capture
from models import make_batches, task_losses, timm_multitask, tiny_vit, torch_encoder_multitask


@pytest.mark.parametrize("make", [tiny_vit, timm_multitask, lambda: torch_encoder_multitask(True)])
def test_a_batched_pass_gives_what_single_ones_give(make: Any):
    model = make().double().eval()
    (batch,) = make_batches(model, (3,))
    with capture(find_blocks(model), differentiable=True) as caught:
        losses = list(task_losses(model, batch).values())
        inputs = [entry.tokens for entry in caught.entries.values()]
        together = batched(losses, inputs, keep=True)
        alone = one_by_one(losses, inputs)
    for own, expected in zip(together, alone, strict=True):
        for gradient, wanted in zip(own, expected, strict=True):
            assert gradient is not None
            torch.testing.assert_close(gradient, torch.zeros_like(gradient) if wanted is None else wanted)


class Opaque(torch.autograd.Function):
    """A product whose backward leaves tensors for a while, and so cannot be batched."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.from_numpy(2 * grads[0].numpy())


def test_a_model_that_cannot_be_batched_goes_on_one_by_one():
    passes = BackwardPasses()
    for _ in range(6):
        x = torch.ones(3, requires_grad=True)
        y = Opaque.apply(x)
        ((_, found),) = passes([y.sum(), y.square().sum()], [x], [0], [], [[0], [0]])
        assert [own[0].tolist() for own in found if own[0] is not None] == [[2.0] * 3, [8.0] * 3]
    assert passes.seconds["batched"] == float("inf")


@pytest.mark.parametrize(("one", "together", "expected"), [(3.0, 1.0, "batched"), (1.0, 0.95, "one by one")])
def test_the_faster_way_goes_on(monkeypatch: pytest.MonkeyPatch, one: float, together: float, expected: str):
    clock, taken = [0.0], []

    def pass_by(way: str, seconds: float) -> Any:
        def compute(losses: list[Tensor], inputs: Any, **options: Any) -> list[Any]:
            clock[0] += seconds
            taken.append(way)
            return []

        return compute

    monkeypatch.setattr(backward_module, "_now", lambda device: clock[0])
    monkeypatch.setattr(backward_module, "one_by_one", pass_by("one by one", one))
    monkeypatch.setattr(backward_module, "batched", pass_by("batched", together))
    passes = BackwardPasses()
    x = torch.ones(2, requires_grad=True)
    for _ in range(7):
        list(passes([x.sum(), x.sum()], [x], [0], [], [[0], [0]]))
    assert taken == ["one by one"] * 2 + ["batched"] * 2 + [expected] * 3


def test_no_choice_with_a_sharded_model_or_inputs_apart_or_many_tokens():
    x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    z = torch.ones(2**16 + 1, requires_grad=True)
    sharded, apart, many = BackwardPasses(alone=False), BackwardPasses(), BackwardPasses()
    for _ in range(5):
        list(many([z.sum(), 2 * z.sum()], [z], [0], [], [[0], [0]]))
        list(sharded([x.sum(), 2 * x.sum()], [x], [0], [], [[0], [0]]))
        list(apart([x.sum(), 2 * y.sum()], [x, y], [0, 0], [], [[0], [1]]))
    assert not sharded.seconds
    assert not apart.seconds
    assert not many.seconds


def test_an_analysis_is_the_same_either_way(monkeypatch: pytest.MonkeyPatch):
    model = tiny_vit().double()
    batches = make_batches(model, (3,) * 8)
    reports = []
    for margin in (0.0, float("inf")):  # never batched once the choice is free, and always
        monkeypatch.setattr(backward_module, "MARGIN", margin)
        reports.append(dtme.analyze(model, task_losses, batches))
    torch.testing.assert_close(reports[0].range_rate, reports[1].range_rate, rtol=0, atol=1e-12)
    torch.testing.assert_close(reports[0].null_rate, reports[1].null_rate, rtol=0, atol=1e-12)


def test_no_parameter_gets_a_gradient():
    model: nn.Module = tiny_vit()
    dtme.analyze(model, task_losses, make_batches(model, (2,) * 6))
    assert all(parameter.grad is None for parameter in model.parameters())
