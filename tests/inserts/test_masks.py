"""Task tokens under every kind of mask, against attention written out for one sample and one task at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtme
from dtme._shapes import Bool, Float
from dtme.inserts.masks import extend_mask

TASKS = ("a", "b", "c")
P, HEADS, N_TOKENS = 8, 2, 2


class Masked(nn.Module):
    """Two post-norm layers of torch, given the masks they are called with."""

    def __init__(self, batch_first: bool = True):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(P, HEADS, 2 * P, dropout=0.0, batch_first=batch_first) for _ in range(2)
        )
        self.heads = nn.ModuleDict({task: nn.Identity() for task in TASKS})

    def forward(self, tokens: Tensor, **masks: Any) -> dict[str, Tensor]:
        for layer in self.layers:
            tokens = layer(tokens, **masks)
        return {task: head(tokens) for task, head in self.heads.items()}


def expanded(tasks: tuple[str, ...], batch_first: bool = True) -> Masked:
    model = Masked(batch_first).double()
    plan = dtme.Plan(TASKS, modulate={"layers.1": TASKS}, expand={"layers.0": tasks}, tokens_per_task=N_TOKENS)
    dtme.apply(model, plan)
    for _, parameter in dtme.added_parameters(model):
        nn.init.normal_(parameter)
    return model


def layer_by_hand(
    layer: nn.TransformerEncoderLayer, tokens: Float[Tensor, "n p"], bias: Float[Tensor, "h n n"]
) -> Float[Tensor, "n p"]:
    attention = layer.self_attn
    query, key, value = (tokens @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
    seen = []
    for head in range(HEADS):
        own = slice(head * P // HEADS, (head + 1) * P // HEADS)
        scores = query[:, own] @ key[:, own].T / (P // HEADS) ** 0.5 + bias[head]
        seen.append((scores.exp() / scores.exp().sum(-1, keepdim=True)) @ value[:, own])
    tokens = layer.norm1(tokens + torch.cat(seen, -1) @ attention.out_proj.weight.T + attention.out_proj.bias)
    hidden = (tokens @ layer.linear1.weight.T + layer.linear1.bias).clamp_min(0)
    return layer.norm2(tokens + hidden @ layer.linear2.weight.T + layer.linear2.bias)


def by_hand(model: Masked, tokens: Float[Tensor, "n p"], bias: Float[Tensor, "h n n"], task: str) -> Tensor:
    first, second = model.layers
    expand, modulate = first.dtme, second.dtme
    length = len(tokens)
    if task in expand.expanded:
        own = expand.tokens[expand.expanded.index(task)]
        wide = torch.zeros(HEADS, length + N_TOKENS, length + N_TOKENS, dtype=bias.dtype)
        wide[:, :length, :length] = bias
        tokens = layer_by_hand(first, torch.cat([tokens, own]), wide)[:length]
    else:
        tokens = layer_by_hand(first, tokens, bias)
    row = TASKS.index(task)
    return layer_by_hand(second, tokens * modulate.scale[row] + modulate.shift[row], bias)


def masks(kind: str, samples: int, length: int) -> tuple[dict[str, Any], Float[Tensor, "b h n n"]]:
    """The masks a layer is called with, and what they add to the scores of each sample and head."""
    hidden = torch.rand(length, length) < 0.4
    hidden[:, 0] = False  # a row that sees nothing has no softmax
    padding = torch.arange(length) >= torch.randint(2, length + 1, (samples, 1))
    causal = torch.ones(length, length, dtype=torch.bool).triu(1)
    heads = torch.rand(samples * HEADS, length, length) < 0.4
    heads[:, :, 0] = False
    table = torch.randn(length, length, dtype=torch.float64)

    def added(*what: Bool[Tensor, "..."]) -> Tensor:
        total = torch.zeros(samples, HEADS, length, length, dtype=torch.float64)
        for mask in what:
            total = total.masked_fill(mask, -torch.inf)
        return total

    rows = padding[:, None, None, :]
    minus = torch.zeros(()).double().masked_fill
    match kind:
        case "none":
            return {}, added()
        case "bool":
            return {"src_mask": hidden}, added(hidden)
        case "float":
            return {"src_mask": table}, added() + table
        case "padding":
            return {"src_key_padding_mask": padding}, added(rows)
        case "float padding":
            return {"src_key_padding_mask": minus(padding, -torch.inf)}, added(rows)
        case "bool and padding":
            return {"src_mask": hidden, "src_key_padding_mask": padding}, added(hidden, rows)
        case "per head":
            return {"src_mask": heads}, added(heads.view(samples, HEADS, length, length))
        case "causal":
            return {"src_mask": minus(causal, -torch.inf), "is_causal": True}, added(causal)
    raise AssertionError(kind)


KINDS = ("none", "bool", "float", "padding", "float padding", "bool and padding", "per head", "causal")
SIZES = [(3, 5), (5, 5), (2, 6), (1, 4), (2, 4)]
"""Samples and length: all different; as many samples as tokens; as many rows of all streams, or of two, as tokens."""


@pytest.mark.parametrize("tasks", [TASKS, ("a", "c"), ("b",)], ids="-".join)
@pytest.mark.parametrize(("samples", "length"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_expansion_under_a_mask_is_attention_written_out(kind: str, samples: int, length: int, tasks: tuple[str, ...]):
    model = expanded(tasks)
    tokens = torch.randn(samples, length, P, dtype=torch.float64)
    given, bias = masks(kind, samples, length)
    outputs = model(tokens, **given)
    for task in TASKS:
        for sample in range(samples):
            expected = by_hand(model, tokens[sample], bias[sample], task)
            torch.testing.assert_close(outputs[task][sample], expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["bool and padding", "per head", "causal"])
@pytest.mark.parametrize(("samples", "length"), [(4, 3), (3, 3)])
def test_rows_with_tasks_of_their_own_under_a_mask(kind: str, samples: int, length: int):
    model = expanded(("a", "c"))
    tokens = torch.randn(samples, length, P, dtype=torch.float64)
    given, bias = masks(kind, samples, length)
    rows = [TASKS[sample % 3] for sample in range(samples)]
    with dtme.tasks(model, per_sample=rows):
        outputs = model(tokens, **given)
    for sample, task in enumerate(rows):
        expected = by_hand(model, tokens[sample], bias[sample], task)
        torch.testing.assert_close(outputs[task][sample], expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["padding", "causal"])
def test_sequence_first(kind: str):
    model = expanded(TASKS, batch_first=False)
    tokens = torch.randn(3, 4, P, dtype=torch.float64)
    given, bias = masks(kind, 3, 4)
    outputs = model(tokens.transpose(0, 1), **given)
    for task in TASKS:
        for sample in range(3):
            expected = by_hand(model, tokens[sample], bias[sample], task)
            torch.testing.assert_close(outputs[task][:, sample], expected, rtol=0, atol=1e-11)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(P, HEADS, 2 * P, dropout=0.0, batch_first=True)
        self.trunk = nn.TransformerEncoder(layer, 3)  # in evaluation it packs padded batches into nested tensors
        self.heads = nn.ModuleDict({task: nn.Linear(P, 1) for task in TASKS})

    def forward(self, tokens: Tensor, padding: Tensor) -> dict[str, Tensor]:
        tokens = self.trunk(tokens, src_key_padding_mask=padding)
        return {task: head(tokens)[~padding] for task, head in self.heads.items()}


def test_an_encoder_that_packs_padded_batches():
    model, plan = Encoder(), dtme.Plan(TASKS, {"trunk.layers.1": TASKS}, {"trunk.layers.2": TASKS})
    tokens, padding = torch.randn(4, 6, P), torch.arange(6) >= torch.tensor([[6], [3], [4], [1]])
    report = dtme.analyze(
        model, lambda model, batch: {k: v.mean() for k, v in model(*batch).items()}, [(tokens, padding)]
    )
    assert report.samples == 4
    assert model.trunk.use_nested_tensor
    dtme.apply(model, plan)
    trained = model.train()(tokens, padding)
    assert trained["a"].requires_grad
    with torch.no_grad():
        evaluated = model.eval()(tokens, padding)
    for task in TASKS:
        torch.testing.assert_close(evaluated[task], trained[task], rtol=0, atol=1e-5)
    assert not model.trunk.use_nested_tensor
    dtme.remove(model)
    assert model.trunk.use_nested_tensor


@pytest.mark.parametrize("hides", [True, False])
def test_task_tokens_are_visible_in_masks_of_either_meaning(hides: bool):
    mask = torch.full((3, 3), hides)
    wide = extend_mask(mask, 3, 2, true_hides=hides)
    assert wide.shape == (5, 5)
    assert bool((wide[:3, :3] == hides).all())
    assert bool((wide[3:] != hides).all())
    assert bool((wide[:, 3:] != hides).all())


@pytest.mark.parametrize(
    ("shape", "by_sample", "expected"),
    [
        ((3, 3), True, (3, 5)),
        ((2, 3), True, (2, 5)),
        ((2, 1, 1, 3), False, (2, 1, 1, 5)),
        ((4, 3, 3), False, (4, 5, 5)),
    ],
)
def test_rows_grow_where_they_are_positions(shape: tuple[int, ...], by_sample: bool, expected: tuple[int, ...]):
    wide = extend_mask(torch.ones(shape, dtype=torch.long), 3, 2, true_hides=False, by_sample=by_sample)
    assert wide.shape == expected
    assert bool((wide == 1).all())
