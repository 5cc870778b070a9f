"""Backward passes in segments: the gradients of whole passes, and never more of them at a time than the graph demands."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dtme
from dtme import backward as backward_module
from dtme.backward import one_by_one
from dtme.blocks import find_blocks
from dtme.capture import capture
from dtme.gradients import token_gradients
from dtme.segments import in_segments
from models import make_batches, task_losses, timm_multitask, tiny_vit, torch_encoder_multitask


def gathered(losses: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[list[list[Tensor | None]], list[list[int]]]:
    """Per loss the gradients by all tensors, and which came together."""
    every: list[list[Tensor | None]] = [[None] * len(tensors) for _ in losses]
    together = []
    for places, found in in_segments(losses, tensors):
        together.append(places)
        for mine, own in zip(every, found, strict=True):
            for place, gradient in zip(places, own, strict=True):
                mine[place] = gradient
    assert sorted(place for places in together for place in places) == list(range(len(tensors)))
    return every, together


@pytest.mark.parametrize("make", [tiny_vit, timm_multitask, lambda: torch_encoder_multitask(True)])
def test_a_plain_trunk_is_gone_through_block_by_block(make: Any):
    model = make().double().eval().requires_grad_(False)
    (batch,) = make_batches(model, (3,))
    found = []
    for way in ("whole", "segments"):
        with capture(find_blocks(model), differentiable=True) as caught:
            losses = list(task_losses(model, batch).values())
            tensors = [entry.tokens for entry in caught.entries.values()]
            if way == "whole":
                found.append(one_by_one(losses, [tensors] * len(losses)))
            else:
                every, together = gathered(losses, tensors)
                found.append(every)
    assert together == [[place] for place in reversed(range(len(tensors)))]
    for own, expected in zip(found[1], found[0], strict=True):
        for gradient, wanted in zip(own, expected, strict=True):
            assert gradient is not None
            assert wanted is not None
            assert torch.equal(gradient, wanted)


@pytest.mark.parametrize("seed", range(60))
def test_any_graph_gives_the_gradients_of_whole_passes(seed: int):
    """Graphs drawn at random: chains with ways around, nodes of two outputs, tensors without a gradient, losses from anywhere."""
    draw = random.Random(seed)

    def build() -> tuple[list[Tensor], list[Tensor]]:
        draw.seed(seed)
        made = [torch.arange(1.0, 5.0, dtype=torch.float64).requires_grad_()]
        for _ in range(draw.randint(3, 12)):
            one = made[-1] if draw.random() < 0.7 else draw.choice(made)
            kind = draw.randrange(5)
            if kind == 0:
                new = [one.sin() + 1]
            elif kind == 1:
                new = [one * (draw.choice(made) if draw.random() < 0.3 else 0.5)]
            elif kind == 2:
                new = [torch.cat(half[::-1]) if draw.random() < 0.5 else half[0].repeat(2) for half in [one.chunk(2)]]
            elif kind == 3:
                smallest, order = one.sort()
                new = [smallest + order]
            else:
                new = [part.repeat(2) for part in one.chunk(2)]
            made += new
        made.append(made[-1].detach() if draw.random() < 0.2 else made[-1].cos())
        losses = [(made[-1] * (place + 1)).square().sum() for place in range(2)]
        if draw.random() < 0.4:
            losses.append(draw.choice(made).square().sum())
        return losses, draw.sample(made, draw.randint(1, len(made)))

    losses, tensors = build()
    tensors = [tensor for tensor in tensors if tensor.requires_grad]
    if not tensors:
        pytest.skip("nothing to differentiate by was drawn")
    expected = one_by_one(losses, [tensors] * len(losses))
    losses, tensors = build()
    tensors = [tensor for tensor in tensors if tensor.requires_grad]
    every, _ = gathered(losses, tensors)
    for own, wanted in zip(every, expected, strict=True):
        for gradient, other in zip(own, wanted, strict=True):
            zero = torch.zeros(4, dtype=torch.float64)
            torch.testing.assert_close(zero if gradient is None else gradient, zero if other is None else other)


def chain(length: int = 4) -> list[Tensor]:
    made = [torch.ones(3, requires_grad=True)]
    for _ in range(length - 1):
        made.append(2 * made[-1] + made[-1].sin())
    return made


def test_no_end_where_a_head_reads_a_block_in_front():
    made = chain()
    losses = [made[-1].sum() + made[1].square().sum(), made[-1].square().sum()]
    _, together = gathered(losses, made)
    assert together == [[3, 2, 1], [0]]


def test_no_end_where_a_loss_begins_in_front():
    made = chain()
    losses = [made[-1].sum(), made[1].sum()]
    _, together = gathered(losses, made)
    assert together == [[3, 2, 1], [0]]


def test_no_end_at_one_of_two_outputs():
    made = chain(2)
    first, second = made[-1].repeat(2).chunk(2)
    _, together = gathered([(first * second).sum(), first.sum()], [*made, first])
    assert together == [[2, 1], [0]]


def test_a_hook_runs_once_for_each_loss():
    calls = []

    def turned(gradient: Tensor) -> Tensor:
        calls.append(gradient)
        return -gradient

    found = []
    for way in ("whole", "segments"):
        made = chain()
        made[2].register_hook(turned)
        losses = [made[-1].sum(), 2 * made[-1].sum()]
        if way == "whole":
            found.append(one_by_one(losses, [made] * 2))
            continue
        every, together = gathered(losses, made)
        found.append(every)
        assert together == [[3], [2, 1], [0]]
    assert len(calls) == 2 * 2
    for own, expected in zip(*found, strict=True):
        for gradient, wanted in zip(own, expected, strict=True):
            assert gradient is not None
            assert wanted is not None
            assert torch.equal(gradient, wanted)


def test_a_loss_that_reaches_nothing_has_no_gradients():
    made = chain()
    every, together = gathered([torch.zeros(()), made[-1].sum(), torch.ones(2, requires_grad=True).sum()], made)
    assert [[gradient is None for gradient in own] for own in every] == [[True] * 4, [False] * 4, [True] * 4]
    assert len(together) == 4


def test_the_graph_is_let_go_segment_by_segment():
    made = chain()
    for places, _ in in_segments([made[-1].sum(), 2 * made[-1].sum()], made):
        if places == [2]:
            break
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(made[3], made[2], torch.ones(3))
    assert torch.autograd.grad(made[2], made[1], torch.ones(3))


def test_an_analysis_in_segments_is_that_of_whole_passes(monkeypatch: pytest.MonkeyPatch):
    model: nn.Module = tiny_vit().double()
    batches, reports = make_batches(model, (3, 2)), []
    for few in (2**30, 0):
        monkeypatch.setattr(backward_module, "FEW", {"cpu": few})
        reports.append(dtme.analyze(model, task_losses, batches))
    whole, segments = reports
    assert torch.equal(whole.range_rate, segments.range_rate)
    assert torch.equal(whole.null_rate, segments.null_rate)
    torch.testing.assert_close(whole.gradient_size, segments.gradient_size)


@pytest.mark.parametrize(("every", "runs"), [(1, 12), (2, 12), (3, 12), (4, 12)])
def test_an_analysis_under_checkpointing_repeats_each_block_once_per_task(
    every: int, runs: int, monkeypatch: pytest.MonkeyPatch
):
    """Segments end between what checkpoints repeat, not inside of it."""
    model = tiny_vit().double()
    batches = make_batches(model, (3, 2))
    monkeypatch.setattr(backward_module, "FEW", {})
    plain = dtme.analyze(model, task_losses, batches)
    counted: list[nn.Module] = []

    class Checkpointed(nn.ModuleList):
        def __iter__(self) -> Any:
            own = [self[place] for place in range(len(self))]
            for first in range(0, len(own), every):
                run = nn.Sequential(*own[first : first + every])
                yield lambda tokens, run=run: checkpoint(run, tokens, use_reentrant=False)

    blocks = [model.blocks[place] for place in range(4)]
    model.blocks = Checkpointed(model.blocks)
    report = dtme.analyze(model, task_losses, batches, blocks=r"blocks\.\d+")
    assert torch.equal(report.range_rate, plain.range_rate)
    assert torch.equal(report.null_rate, plain.null_rate)
    with capture(dict(zip(report.blocks, blocks, strict=True)), differentiable=True) as caught:
        for block in blocks:
            block.register_forward_pre_hook(lambda block, args: counted.append(block))
        with caught.reading(batches[0]):
            losses = task_losses(model, batches[0])
        forward = len(counted)
        found = dict(token_gradients(losses, caught, 0, backward_module.BackwardPasses()))
    assert set(found) == set(report.blocks)
    assert (forward, len(counted) - forward) == (4, runs)
