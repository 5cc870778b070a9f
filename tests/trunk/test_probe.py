"""Where samples lie inside a block is tried there: a block that takes samples first may turn its tokens round on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import TASKS, WIDTH, Block, Mlp, Small, assert_each_task_is_alone, features, planned
from torch import Tensor, nn


class PositionsFirst(nn.Module):
    """Attention whose layers take (positions, samples, channels), as fairseq's do."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        length, samples, width = x.shape
        heads = (
            layer(x).reshape(length, samples * 2, width // 2).transpose(0, 1) for layer in (self.q, self.k, self.v)
        )
        q, k, v = heads
        mixed = (torch.bmm(q, k.mT) * (width // 2) ** -0.5).softmax(-1) @ v
        return self.o(mixed.transpose(0, 1).reshape(length, samples, width)).transpose(0, 1)


class Windows(nn.Module):
    """Attention within halves of the sequence, all first halves before all second ones."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = PositionsFirst()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.inner(torch.cat(x.chunk(2, 1))).chunk(2), 1)


class Sorted(nn.Module):
    """Tokens are dealt to two layers by their first channel, whatever sample they are of."""

    def __init__(self) -> None:
        super().__init__()
        self.few, self.many = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        low = tokens[:, 0] < 0
        out = torch.empty_like(tokens)
        out[low], out[~low] = self.few(tokens[low]), self.many(tokens[~low])
        return out.view_as(x)


class TurnedMlp(Block):
    """A block that takes samples first, and whose MLP takes positions first."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x).transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("samples", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", ["adapt", "copies"])
def test_layers_that_take_positions_first_in_a_block_that_takes_samples_first(kind: str, samples: int):
    base = Small(lambda: Block(attn=PositionsFirst()))
    plan: dict[str, Any] = (
        {"adapt": {"blocks.1": TASKS}, "rank": 2}
        if kind == "adapt"
        else {"modulate": {"blocks.0": TASKS}, "copies": {"blocks.1.attn.o": TASKS[1:]}}
    )
    assert_each_task_is_alone(base, planned(base, **plan), features(samples), rows=kind == "adapt")


@pytest.mark.parametrize("before", [{}, {"modulate": {"blocks.0": TASKS}}], ids=["parts here", "parted before"])
@pytest.mark.parametrize(
    "kind", [{"adapt": {"blocks.1.mlp": TASKS}, "rank": 2}, {"copies": {"blocks.1.mlp": TASKS[1:]}}], ids=str
)
@pytest.mark.parametrize("samples", [3, 4, 6])
def test_a_part_that_takes_positions_first(kind: dict[str, Any], before: dict[str, Any], samples: int):
    base = Small(TurnedMlp)
    assert_each_task_is_alone(base, planned(base, **kind, **before), features(samples), rows=False)


@pytest.mark.parametrize(("inner", "layers"), [(Windows, r"attn\.inner\.q"), (Sorted, r"attn\.few")])
def test_rows_that_are_no_samples_are_served_or_refused_by_name(inner: type[nn.Module], layers: str):
    base = Small(lambda: Block(attn=inner()))
    model = planned(base, adapt={"blocks.1": TASKS}, rank=2, adapt_layers=layers)
    with pytest.raises(ValueError, match=rf"adapt: layer '{layers}' of block 'blocks\.1' .*adapt_layers"):
        model(features(4))
    rest = planned(base, adapt={"blocks.1": TASKS}, rank=2, adapt_layers=r"mlp\..*")
    assert_each_task_is_alone(base, rest, features(4))


def test_the_mlp_of_a_block_with_another_layout_inside_is_left_alone():
    base = Small(lambda: Block(attn=PositionsFirst(), mlp=Mlp()))
    assert_each_task_is_alone(base, planned(base, modulate={"blocks.0": TASKS}), features(3))
