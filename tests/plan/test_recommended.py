"""Where our own default lets streams part: in the last MLP if the block takes streams behind it, else at the block."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from models import make_batches, task_losses, tiny_vit
from torch import Tensor, nn

import dtme
from dtme.plan.cost import ModelFlops


class Mlp(nn.Module):
    """Not a Sequential, whose inserts would be members."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.fc1(tokens).relu())


class Mixer(nn.Module):
    """Stands for attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.proj(self.qkv(tokens) + tokens.mean(1, keepdim=True))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Mixer(), Mlp()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(tokens)
        return tokens + self.mlp(tokens)


class InPlace(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(tokens)
        found = self.mlp(tokens)
        found += tokens
        return found


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TorchScript is on its way out

    @torch.jit.script
    def scripted_sum(one: Tensor, two: Tensor) -> Tensor:
        return one + two


class Scripted(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(tokens)
        return scripted_sum(tokens, self.mlp(tokens))


class AttentionLast(Block):
    """Its MLP runs in front of what it holds before."""

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.mlp(tokens)
        return tokens + self.attn(tokens)


class Mapping(Block):
    """Its MLP is no module that can be run by itself on tokens."""

    class Told(Mlp):
        def forward(self, call: Any) -> Tensor:
            return super().forward(call["tokens"])

    def __init__(self) -> None:
        super().__init__()
        self.mlp = self.Told()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(tokens)
        return tokens + self.mlp({"tokens": tokens})


class Model(nn.Module):
    def __init__(self, kind: type[Block]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(kind() for _ in range(3))
        self.heads = nn.ModuleDict({"a": nn.Linear(16, 2), "b": nn.Linear(16, 3)})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            tokens = block(tokens)
        return {task: head(tokens) for task, head in self.heads.items()}


def losses(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    weights = torch.ones(500, 500)
    return {task: out.square().mean() + (weights @ weights).mean() * 0 for task, out in model(batch).items()}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rank", [2, None])
@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (Block, "blocks.2.mlp"),
        (InPlace, "blocks.2.mlp"),
        (Scripted, "blocks.2.mlp"),
        (AttentionLast, "blocks.2"),
        (Mapping, "blocks.2"),
    ],
)
def test_streams_part_where_the_block_takes_them(kind: type[Block], place: str, rank: int | None, tokens: Tensor):
    model = Model(kind)
    report = dtme.analyze(model, losses, [tokens])
    plan = report.recommended(rank=rank)
    assert plan.blocks == (place,)
    expected = model(tokens)
    dtme.apply(model, plan)
    found = model(tokens)
    for task, out in expected.items():
        torch.testing.assert_close(found[task], out)
    torch.stack(list(losses(model, tokens).values())).sum().backward()
    assert all(parameter.grad is not None for _, parameter in dtme.added_parameters(model))


@pytest.mark.parametrize("kind", [Block, Mapping])
def test_losses_are_no_part_of_the_pass_whatever_raised_beside_it(kind: type[Block], tokens: Tensor):
    model = Model(kind)
    flops = dtme.analyze(model, losses, [tokens]).flops
    assert isinstance(flops, ModelFlops)
    assert flops.once == 2 * 4 * 5 * 16 * (2 + 3)
    assert flops.plain == flops.once + 3 * 2 * 4 * 5 * (2 * 16 * 16 + 2 * 16 * 32)


def test_parts_of_blocks_can_be_analysed_beside_the_count_of_the_blocks(tokens: Tensor):
    model = Model(Block)
    report = dtme.analyze(model, losses, [tokens, tokens], blocks=r"blocks\.\d+\.mlp")
    assert report.blocks == ("blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp")
    assert report.samples == 8


def test_an_mlp_that_would_run_inserts_as_members_is_no_place_for_them():
    model: Any = tiny_vit()
    report = dtme.analyze(model, task_losses, make_batches(model, (3,)))
    assert report.recommended().blocks == ("blocks.3",)  # its MLP is a Sequential
