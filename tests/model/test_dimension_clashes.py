"""Sizes that coincide: as many samples as tokens, heads, channels or streams, and batches of one. Nothing may depend on it.

Every model is held against itself on one sample and one task at a time, in a batch where no two sizes coincide.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtme
from dtme.trunk.batched_arguments import rows_dim

TASKS = ("a", "b", "c")
P, HEADS, N = 6, 3, 6
SIZES = (1, 2, 3, 6)
"""Samples: one; as many as two of three tasks; as streams, as heads; as tokens, as channels."""
CLOSE = {"rtol": 0, "atol": 1e-11}


class Attended(nn.Module):
    """Attention by hand that is told everything that blocks are told, by the names that libraries use."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(P), nn.Linear(P, 3 * P), nn.Linear(P, P)

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        position_ids: Tensor | None = None,
        cache_position: Tensor | None = None,
        relative_bias: Tensor | None = None,
        attn_bias: Tensor | None = None,
        alibi: Tensor | None = None,
        head_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
        condition: Tensor | None = None,
        lengths: Tensor | None = None,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        b = len(tokens)
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in self.qkv(self.norm(tokens)).chunk(3, -1))
        if position_embeddings is not None:
            cos, sin = (table.unsqueeze(1) if table.ndim == 3 else table for table in position_embeddings)
            q, k = (x * cos + x.flip(-1) * sin for x in (q, k))
        scores = q @ k.mT
        if relative_bias is not None:
            scores = scores + relative_bias
        if attn_bias is not None:
            scores = scores + attn_bias.view(-1, 1, N, N)
        if alibi is not None:
            scores = scores + alibi.view(b, HEADS, 1, N)
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask == 0, -1e9)
        if token_mask is not None:
            scores = scores.masked_fill(~token_mask, -1e9)
        if lengths is not None:
            scores = scores.masked_fill(torch.arange(N) >= lengths.view(b, 1, 1, 1), -1e9)
        weights = scores.softmax(-1)
        if head_mask is not None:
            weights = weights * head_mask.view(-1, HEADS, 1, 1)
        update = self.out((weights @ v).transpose(1, 2).flatten(2))
        for places in (position_ids, cache_position):
            if places is not None:
                update = update + (places / 7).sin().unsqueeze(-1)
        if condition is not None:
            update = update * condition.view(b, 1, P)
        if scale is not None:
            update = update * scale
        if bias is not None:
            update = update + bias
        return tokens + update


def draw(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def keep(b: int) -> Tensor:
    return (torch.arange(N) < 2 + torch.arange(b)[:, None] % (N - 1)).long()


def told(kind: str, b: int) -> tuple[dict[str, Any], set[str]]:
    """Arguments for `b` samples, and those of them that have a row per sample."""
    angles = draw(b, N, P // HEADS)
    return {
        "rotary tables": ({"position_embeddings": (angles[0].cos(), angles[0].sin())}, set()),
        "rotary tables in one row": ({"position_embeddings": (angles[:1].cos(), angles[:1].sin())}, set()),
        "rotary tables per sample": ({"position_embeddings": (angles.cos(), angles.sin())}, {"position_embeddings"}),
        "ids": ({"position_ids": torch.arange(N)}, set()),
        "ids in one row": ({"position_ids": torch.arange(N)[None]}, set()),
        "ids per sample": ({"position_ids": torch.arange(b)[:, None] + torch.arange(N)}, {"position_ids"}),
        "cache positions": ({"cache_position": torch.arange(N)}, set()),
        "bias per head": ({"relative_bias": draw(HEADS, N, N)}, set()),
        "bias per sample": ({"attn_bias": draw(b, N, N)}, {"attn_bias"}),
        "bias of all": ({"attn_bias": draw(1, N, N)}, set()),
        "alibi": ({"alibi": draw(b * HEADS, 1, N)}, {"alibi"}),
        "head mask": ({"head_mask": draw(HEADS)}, set()),
        "head mask per sample": ({"head_mask": draw(b, HEADS, 1, 1)}, {"head_mask"}),
        "mask in one row": ({"token_mask": keep(2)[1].bool()}, set()),
        "mask over pairs": ({"attention_mask": torch.ones(1, 1, N, N).tril()}, set()),
        "mask per sample": ({"attention_mask": keep(b)[:, None, None]}, {"attention_mask"}),
        "mask per sample and head": (
            {"attention_mask": (draw(b, HEADS, N, N) > -0.5).long() | torch.eye(N).long()},
            {"attention_mask"},
        ),
        "condition": ({"condition": draw(b, P)}, {"condition"}),
        "lengths": ({"lengths": 1 + torch.arange(b) % N}, {"lengths"}),
        "one scale": ({"scale": draw(1)}, set()),
        "bias in one row": ({"bias": draw(1, P)}, set()),
    }[kind]


KINDS = (
    "rotary tables", "rotary tables in one row", "rotary tables per sample", "ids", "ids in one row", "ids per sample",
    "cache positions", "bias per head", "bias per sample", "bias of all", "alibi", "head mask", "head mask per sample",
    "mask in one row", "mask over pairs", "mask per sample", "mask per sample and head", "condition", "lengths", "one scale",
    "bias in one row",
)  # fmt: skip


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Attended() for _ in range(2))
        self.heads = nn.ModuleDict({task: nn.Linear(P, 2) for task in TASKS})

    def forward(self, tokens: Tensor, **arguments: Any) -> dict[str, Tensor]:
        for block in self.blocks:
            tokens = block(tokens, **arguments)
        return {task: head(tokens) for task, head in self.heads.items()}


PLANS = (
    dtme.Plan(TASKS, {"blocks.0": TASKS}, adapt={"blocks.1": ("b",)}),
    dtme.Plan(TASKS, {"blocks.0": ("b",), "blocks.1": ("a",)}),
)


def filled(plan: dtme.Plan) -> Any:
    torch.manual_seed(0)
    model = dtme.apply(Model().double().eval(), plan)
    for _, parameter in dtme.added_parameters(model):
        nn.init.normal_(parameter)
    return model


def by_hand(model: Any, task: str, tokens: Tensor, arguments: dict[str, Any]) -> Tensor:
    """One task, through copies of the blocks without inserts."""
    for block in model.blocks:
        own = Attended().double()
        own.load_state_dict({key: value for key, value in block.state_dict().items() if not key.startswith("dtme.")})
        insert = block.dtme
        if task in insert.modulated:
            row = insert.modulated.index(task)
            tokens = tokens * insert.scale[row] + insert.shift[row]
        if task in insert.adapted:
            row = insert.adapted.index(task)
            for layer in ("qkv", "out"):
                update = insert.low_rank[layer]
                getattr(own, layer).weight.data += (update.up[row] @ update.down[row]).detach()
        tokens = own(tokens, **arguments)
    return model.heads[task](tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_block_is_told_follows_by_rule(kind: str):
    for plan in PLANS:
        model = filled(plan)
        for samples in SIZES:
            tokens, (arguments, _) = draw(samples, N, P, seed=1), told(kind, samples)
            together = model(tokens, **arguments)
            rows = [TASKS[row % 3] for row in range(samples)]
            with dtme.tasks(model, per_sample=rows):
                mixed = model(tokens, **arguments)
            for task in TASKS:
                expected = by_hand(model, task, tokens, arguments)
                torch.testing.assert_close(together[task], expected, **CLOSE)
                with dtme.tasks(model, task):
                    torch.testing.assert_close(model(tokens, **arguments)[task], expected, **CLOSE)
                for row, own in enumerate(rows):
                    if own == task:
                        torch.testing.assert_close(mixed[task][row], expected[row], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_asks_for_names_before_sizes(kind: str):
    for samples in (2, 3, 4, 6, 7):
        arguments, per_sample = told(kind, samples)
        if kind == "bias per head" and samples == 1:
            continue
        for name, value in arguments.items():
            for leaf in value if isinstance(value, tuple) else (value,):
                assert rows_dim(name, leaf, samples, N) == (0 if name in per_sample else None), (name, samples)


@pytest.mark.parametrize(
    ("name", "shape", "samples", "length", "dim"),
    [
        ("memory", (5, 2, 8), 2, 7, 1),
        ("memory", (2, 2, 8), 2, 2, 1),
        ("memory", (1, 2, 8), 2, 7, 1),
        ("pos", (7, 2, 8), 2, 7, 1),
        ("pos", (7, 1, 8), 2, 7, None),
        ("pos", (7, 1, 8), 7, 7, None),
        ("query_pos", (1, 7, 8), 7, 7, None),
        ("memory_key_padding_mask", (2, 2), 2, 2, 0),
        ("src_mask", (4, 2, 2), 2, 2, 0),
        ("src_mask", (2, 2), 2, 2, None),
    ],
)
def test_samples_behind_positions(name: str, shape: tuple[int, ...], samples: int, length: int, dim: int | None):
    assert rows_dim(name, torch.zeros(shape), samples, length, batch=1) == dim


class Torch(nn.Module):
    def __init__(self, first: bool, decoder: bool):
        super().__init__()
        kind = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
        self.blocks = nn.ModuleList(kind(P, HEADS, P, dropout=0.0, batch_first=first) for _ in range(2))
        self.heads = nn.ModuleDict({task: nn.Linear(P, 2) for task in TASKS})

    def forward(self, *given: Tensor, **masks: Tensor) -> dict[str, Tensor]:
        tokens, *memory = given
        for block in self.blocks:
            tokens = block(tokens, *memory, **masks)
        return {task: head(tokens) for task, head in self.heads.items()}


def masks_of(decoder: bool, samples: int) -> dict[str, Tensor]:
    hidden = torch.rand(samples * HEADS, N, N, generator=torch.Generator().manual_seed(0)) < 0.3
    hidden[:, :, 0] = False
    padding = keep(samples) == 0
    if not decoder:
        return {"src_mask": hidden, "src_key_padding_mask": padding}
    return {
        "tgt_mask": torch.ones(N, N).triu(1).bool(),
        "tgt_key_padding_mask": padding,
        "memory_mask": hidden,
        "memory_key_padding_mask": padding.flip(0),
    }


@pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize("first", [True, False], ids=["samples first", "positions first"])
def test_layers_of_torch_sample_by_sample(first: bool, decoder: bool):
    torch.manual_seed(0)
    expand = {} if decoder else {"blocks.1": ("a", "c")}  # a mask over a memory knows no task tokens
    plan = dtme.Plan(TASKS, {"blocks.0": TASKS}, expand, {"blocks.1": ("b",)})
    model = dtme.apply(Torch(first, decoder).double().eval(), plan)
    for _, parameter in dtme.added_parameters(model):
        nn.init.normal_(parameter)
    dim = 0 if first else 1
    for samples in SIZES:
        given = [draw(samples, N, P, seed=seed) for seed in range(1 + decoder)]
        given, masks = [x if first else x.transpose(0, 1) for x in given], masks_of(decoder, samples)
        together = model(*given, **masks)
        for row in range(samples):
            own = {
                name: mask if mask.shape == (N, N) and name == "tgt_mask" else mask.unflatten(0, (samples, -1))[row]
                for name, mask in masks.items()
            }
            single = [x.narrow(dim, row, 1) for x in given]
            for task in TASKS:
                with dtme.tasks(model, task):
                    expected = model(*single, **own)[task]
                torch.testing.assert_close(together[task].narrow(dim, row, 1), expected, **CLOSE)


def test_attention_weights_beside_the_tokens_are_parted_with_their_samples():
    """Where positions come first, and there are as many as rows of all streams."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.norm = nn.MultiheadAttention(P, 2), nn.LayerNorm(P)

        def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
            update, weights = self.attention(tokens, tokens, tokens)
            return self.norm(tokens + update), weights

    class Weighing(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Both()])
            self.heads = nn.ModuleDict({task: nn.Identity() for task in TASKS})

        def forward(self, tokens: Tensor) -> dict[str, Tensor]:
            _, weights = self.blocks[0](tokens)
            return {task: head(weights) for task, head in self.heads.items()}

    model = dtme.apply(Weighing().double(), dtme.Plan(TASKS, {"blocks.0": TASKS}))
    nn.init.normal_(dict(dtme.added_parameters(model))["blocks.0.dtme.scale"])
    tokens = draw(N, 2, P)  # three streams of two samples are six rows
    together = model(tokens)
    for task in TASKS:
        with dtme.tasks(model, task):
            torch.testing.assert_close(together[task], model(tokens)[task], **CLOSE)
