"""What blocks are told about positions: which of it has a row per sample, and how it grows by task tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtme
from dtme.inserts.masks import causal_mask
from dtme.inserts.positions import extend_positions
from dtme.measure.capture import capture
from dtme.trunk.batched_arguments import has_rows

N, COUNT = 4, 2


@pytest.mark.parametrize(
    ("name", "shape", "samples", "follows"),
    [
        ("position_embeddings", (N, 8), N, False),  # angles shared by all samples, as many as there are samples
        ("position_embeddings", (1, N, N), 3, False),
        ("position_embeddings", (3, N, N), 3, True),  # as wide as the sequence is long
        ("rope", (6, 8), 6, False),  # of other length than the sequence, as without its class token
        ("cache_position", (N,), N, False),
        ("position_ids", (N, N), N, True),
        ("position_ids", (1, N), N, False),
        ("relative_pos", (1, N, N), 3, False),
        ("rel_embeddings", (3, 16), 3, False),
        ("position_bias", (3, 2, N, N), 3, True),
        ("position_bias", (1, 2, N, N), 3, False),
        ("attention_mask", (3, 1, N, N), 3, True),
    ],
)
def test_tables_of_positions_are_told_from_rows(name: str, shape: tuple[int, ...], samples: int, follows: bool):
    assert has_rows(name, torch.zeros(shape), samples, N) is follows


def turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = heads.chunk(2, -1)
    return heads * cos + torch.cat([-two, one], -1) * sin


@pytest.mark.parametrize("kind", ["pair", "list", "one table", "apart", "complex"])
def test_task_tokens_are_not_turned(kind: str):
    angles = torch.rand(N, 3).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    heads = torch.randn(5, N + COUNT, 6)
    if kind == "one table":
        sin, cos = extend_positions("rope", torch.cat([sin, cos], -1), N, COUNT).chunk(2, -1)
    elif kind == "apart":
        cos, sin = (extend_positions(name, table, N, COUNT) for name, table in (("cos", cos), ("rotary_sin", sin)))
    elif kind == "complex":
        numbers = extend_positions("freqs_cis", torch.complex(cos, sin), N, COUNT)
        cos, sin = numbers.real, numbers.imag
    else:
        cos, sin = extend_positions("position_embeddings", [cos, sin] if kind == "list" else (cos, sin), N, COUNT)
    assert torch.equal(cos[:N], angles.cos())
    assert torch.equal(sin[:N], angles.sin())
    assert torch.equal(turned(heads, cos, sin)[:, N:], heads[:, N:])


def test_a_table_without_the_class_token_still_lies_behind_it():
    """Some trunks turn the last positions only, as many as the table has rows."""
    cos, _ = extend_positions("position_embeddings", (torch.zeros(N - 1, 2), torch.ones(N - 1, 2)), N, COUNT)
    assert cos.tolist() == [[0.0, 0.0]] * (N - 1) + [[1.0, 1.0]] * COUNT


def test_indices_grow_by_zeros_and_other_things_stay():
    ids = extend_positions("position_ids", torch.arange(1, N + 1).expand(3, N), N, COUNT)
    assert ids.tolist() == [[1, 2, 3, 4, 0, 0]] * 3
    relative = extend_positions("relative_pos", torch.ones(1, N, N, dtype=torch.long), N, COUNT)
    assert relative.shape == (1, N + COUNT, N + COUNT)
    assert int(relative.sum()) == N * N
    table = torch.rand(9, 8)
    assert extend_positions("rel_embeddings", table, N, COUNT) is table
    assert extend_positions("position_embeddings", None, N, COUNT) is None
    assert extend_positions("condition", table, N, COUNT) is table


def test_the_causal_mask_hides_what_comes_later():
    mask = causal_mask(3, torch.zeros(1, dtype=torch.float64))
    assert mask.shape == (1, 1, 3, 3)
    assert (mask[0, 0] == 0).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert mask.dtype == torch.float64


class Block(nn.Module):
    """Attention whose weights do not matter, that is told anything."""

    def __init__(self, **attributes: Any):
        super().__init__()
        self.attention = nn.Linear(4, 4)
        for name, value in attributes.items():
            setattr(self.attention, name, value)

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Any = None,
        position_embeddings: Any = None,
        height: int | None = None,
        past_key_values: Any = None,
    ) -> Tensor:
        return tokens + self.attention(tokens)


class Unmasked(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.attention(tokens)


class Model(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList([block])
        self.heads = nn.ModuleDict({task: nn.Identity() for task in ("a", "b")})

    def forward(self, tokens: Tensor, **told: Any) -> dict[str, Tensor]:
        for block in self.blocks:
            tokens = block(tokens, **told)
        return {task: head(tokens) for task, head in self.heads.items()}


FLASH = SimpleNamespace(_attn_implementation="flash_attention_2")
REFUSED = {
    "told a grid": (Block(), {"height": 2}, "told the grid of its tokens"),
    "with a cache": (Block(), {"past_key_values": object()}, "use_cache=False"),
    "with a mask of its own type": (Block(), {"attention_mask": {"blocks": 1}}, "is a dict, which cannot be extended"),
    "with a mask over other positions": (Block(), {"attention_mask": torch.ones(2, 1, 1, 9)}, "not over its 4 tokens"),
    "flash attention with padding": (Block(config=FLASH), {"attention_mask": torch.ones(2, N)}, "flash attention"),
    "causal flash attention": (Block(config=FLASH, is_causal=True), {}, "flash attention"),
    "flash attention in a window": (Block(config=FLASH, sliding_window=2), {}, "in a window"),
    "causal without a mask": (Unmasked(is_causal=True), {}, "takes no mask"),
    "biases of its own": (Block(relative_position_bias_table=nn.Parameter(torch.ones(3))), {}, "positions of its own"),
    "positions of an unknown kind": (Block(), {"position_embeddings": torch.ones(2, N, 4)}, "unknown kind"),
    "positions of an unknown type": (Block(), {"position_embeddings": {"cos": 1}}, "come as dict"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_block_that_cannot_take_task_tokens_is_named(kind: str):
    block, told, reason = REFUSED[kind]
    plan = dtme.Plan(("a", "b"), expand={"blocks.0": ("a", "b")})
    model = dtme.apply(Model(block), plan)
    with pytest.raises(ValueError, match=rf"(?s)expand: block 'blocks.0' .*{reason}.*report.plan\(expansion=False\)"):
        model(torch.randn(2, N, 4), **told)
    dtme.remove(model)
    model(torch.randn(2, N, 4), **told)


@pytest.mark.parametrize(
    ("mask", "valid"),
    [
        (torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()[:, None, None], [[True, True, False], [True] * 3]),
        (
            torch.tensor([[1, 1, 0], [1, 1, 1]])[:, None, None] * torch.ones(3, 1).long(),
            [[True, True, False], [True] * 3],
        ),
        (torch.tensor([[0.0, 0.0, -3e38], [0.0, 1.5, -7.0]])[:, None, None], [[True, True, False], [True] * 3]),
        (torch.ones(2, 1, 3, 3).tril().bool(), [[True] * 3] * 2),
        (torch.ones(2, 1, 3, 3).tril().bool() & torch.tensor([0, 1, 1]).bool(), [[False, True, True]] * 2),
        (torch.ones(1, 1, 3, 3).tril().bool(), None),  # shared by all samples: it speaks of no padding
        (None, None),
    ],
)
def test_padding_is_what_no_position_attends_to(mask: Tensor | None, valid: list[list[bool]] | None):
    block = Block()
    with capture({"block": block}, differentiable=False) as caught:
        block(torch.randn(2, 3, 4), attention_mask=mask)
    found = caught.entries["block"].valid
    assert (None if found is None else found.tolist()) == valid
