"""Where the samples of a trunk of one's own lie: told by its attention, by itself, or refused where neither can be right."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dtme
from dtme.inserts.insert import layer_key
from dtme.trunk.linear_layers import linear_layers

TASKS = ("depth", "semseg", "scene")
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
IMAGES = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PLANS = {
    "modulation": dtme.Plan(TASKS, {"blocks.1": TASKS}),
    "expansion": dtme.Plan(TASKS, expand={"blocks.1": TASKS[:2]}),
    "adaptation": dtme.Plan(TASKS, adapt={"blocks.1": TASKS}, rank=2),
    "some of each": dtme.Plan(TASKS, {"blocks.0": TASKS[:1]}, {"blocks.1": TASKS[:2]}, {"blocks.2": TASKS}, rank=2),
}


class TurnedInside(nn.Module):
    """Samples first, turned around for an attention that is told nothing, and back."""

    def __init__(self):
        super().__init__()
        self.norm, self.attn, self.out = nn.LayerNorm(16), nn.MultiheadAttention(16, 2), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens).transpose(0, 1)
        return tokens + self.out(self.attn(x, x, x)[0].transpose(0, 1))


class PositionsFirst(nn.Module):
    """Positions first, and an attention of its own, which says nothing about it."""

    def __init__(self):
        super().__init__()
        self.norm, self.attn, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.attn(self.norm(tokens)).transpose(0, 1).chunk(3, -1)
        return tokens + self.out(F.scaled_dot_product_attention(query, key, value).transpose(0, 1))


class Model(nn.Module):
    def __init__(self, block: type[nn.Module]):
        super().__init__()
        torch.manual_seed(0)
        self.turn = block is PositionsFirst
        self.embed = nn.Conv2d(3, 16, 8, stride=8)
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.heads = nn.ModuleDict({task: nn.Linear(16, 2) for task in TASKS})
        self.double().eval()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        tokens = self.embed(image).flatten(2).transpose(1, 2)
        tokens = tokens.transpose(0, 1) if self.turn else tokens
        for block in self.blocks:
            tokens = block(tokens)
        tokens = tokens.transpose(0, 1) if self.turn else tokens
        return {task: head(tokens) for task, head in self.heads.items()}


def filled(base: nn.Module, plan: dtme.Plan) -> Any:
    model = dtme.apply(copy.deepcopy(base), plan)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return model


def losses(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    return {task: output.sin().mean() for task, output in model(image).items()}


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("block", "says"),
    [(TurnedInside, r"\(tokens, samples, channels\).*batch_first = True if samples come first"),
     (PositionsFirst, r"\(samples, tokens, channels\).*batch_first = False if samples come second")],
)  # fmt: skip
def test_a_reading_that_cannot_be_right_is_refused(block: type[nn.Module], says: str, samples: int):
    base, images = Model(block), IMAGES[:samples]
    model = dtme.apply(copy.deepcopy(base), PLANS["modulation"])
    with pytest.raises(ValueError, match=rf"enter block 'blocks.1' and are read as {says}"):
        model(images)
    with pytest.raises(ValueError, match=rf"enter block 'blocks.0' and are read as {says}"):
        dtme.analyze(base, losses, [images])


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("block", [TurnedInside, PositionsFirst])
def test_a_block_that_says_how_its_samples_lie_is_believed(block: type[nn.Module], plan: str):
    base = Model(block)
    for member in base.blocks:
        member.batch_first = block is TurnedInside
    model = filled(base, PLANS[plan])
    together = model(IMAGES)
    for row, task in enumerate(TASKS):
        torch.testing.assert_close(model(IMAGES[row : row + 1])[task][0], together[task][row], **CLOSE)
        with dtme.tasks(model, task):
            torch.testing.assert_close(model(IMAGES)[task], together[task], **CLOSE)
        if plan == "adaptation":
            merged = copy.deepcopy(base)
            for layer, linear in linear_layers(merged.blocks[1]).items():
                own = model.blocks[1].dtme.low_rank[layer_key(layer)]
                linear.weight.data += (own.up[row] @ own.down[row]).detach()
            torch.testing.assert_close(together[task], merged(IMAGES)[task], **CLOSE)
    with dtme.tasks(model, per_sample=TASKS):
        mixed = model(IMAGES)
    for row, task in enumerate(TASKS):
        torch.testing.assert_close(mixed[task][row], together[task][row], **CLOSE)


def test_a_part_that_is_called_by_itself_is_not_held_against_an_earlier_batch():
    model = dtme.apply(Model(TurnedInside), PLANS["modulation"])
    for member in model.blocks:
        member.batch_first = True
    model(IMAGES)
    for member in model.blocks:
        del member.batch_first
    assert model.blocks[1](torch.zeros(3, 16, 16, dtype=torch.float64)) is not None


def test_as_many_windows_as_a_model_likes_are_samples():
    class Windows(Model):
        def forward(self, image: Tensor) -> dict[str, Tensor]:
            tokens = self.embed(image).unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 3, 5, 1)
            tokens = tokens.flatten(0, 2).flatten(1, 2)  # (4 B, 4, C): as many positions as samples
            for block in self.blocks:
                tokens = block(tokens)
            return {task: head(tokens) for task, head in self.heads.items()}

    base = Windows(TurnedInside)
    for member in base.blocks:
        member.attn.batch_first = True
        member.forward = lambda tokens, own=member: tokens + own.out(own.attn(*[own.norm(tokens)] * 3)[0])
    images = torch.cat([IMAGES, IMAGES[:1]])
    before = base(images)
    model = dtme.apply(base, PLANS["modulation"])
    for task, output in model(images).items():
        torch.testing.assert_close(output, before[task], **CLOSE)
