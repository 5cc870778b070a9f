"""Padding counts for nothing, whether the blocks are told of it, the user says so, or a mask is of an unusual kind."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from measured import assert_equals_reference
from models import EncoderMultitask, make_batches, task_losses
from torch import Tensor, nn

import dtme
from dtme.measure.capture import capture

TEXT = ("rating", "topic", "irony")
P = 16


class Untold(nn.Module):
    """A layer that finds the padding where no argument shows it: its tokens are all it is called with."""

    def __init__(self, padding: list[Tensor]):
        super().__init__()
        self.padding = padding
        self.attention = nn.MultiheadAttention(P, 2, batch_first=True)
        self.norm, self.mlp = nn.LayerNorm(P), nn.Sequential(nn.Linear(P, P), nn.GELU(), nn.Linear(P, P))

    def forward(self, tokens: Tensor) -> Tensor:
        normed, (padding,) = self.norm(tokens), self.padding
        padding = padding.repeat(len(tokens) // len(padding), 1)  # once for each stream
        attended, _ = self.attention(normed, normed, normed, key_padding_mask=padding, need_weights=False)
        return tokens + attended + self.mlp(tokens)


class Silent(EncoderMultitask):
    def __init__(self):
        super().__init__(TEXT, depth=2, batch_first=True)
        self.seen: list[Tensor] = []
        self.encoder.layers = nn.ModuleList(Untold(self.seen) for _ in range(2))

    def forward(self, words: Tensor, padding: Tensor) -> dict[str, Tensor]:
        self.seen[:] = [padding]
        tokens = self.embed(words)
        for layer in self.encoder.layers:
            tokens = layer(tokens)
        return {task: head(self.norm(tokens), padding) for task, head in self.heads.items()}


def real(batch: dict[str, Any]) -> Tensor:
    return ~batch["inputs"][1]


@pytest.fixture
def model() -> Silent:
    return Silent().double()


def same(one: dtme.ConflictReport, other: dtme.ConflictReport) -> bool:
    return (
        one.range_rank == other.range_rank
        and one.zero_share == other.zero_share
        and torch.equal(one.range_rate, other.range_rate)
        and torch.equal(one.null_rate, other.null_rate)
    )


@pytest.mark.parametrize("present", [None, (("topic",), ("rating",), ("irony",))])
def test_a_mask_that_is_given_equals_the_reference(model: Silent, present: Any):
    batches = make_batches(model, (3, 2, 4), present=present)
    report = dtme.analyze(model, task_losses, batches, token_mask=real, variance_ratio=10.0)
    assert_equals_reference(report, model, batches, 10.0)
    assert not same(report, dtme.analyze(model, task_losses, batches, variance_ratio=10.0))


def test_what_stands_in_the_padding_has_no_influence(model: Silent):
    batches = make_batches(model, (3, 4))
    others = []
    for batch in batches:
        words, padding = batch["inputs"]
        others.append({**batch, "inputs": (torch.where(padding, (words + 7) % 20, words), padding)})
    reports = [dtme.analyze(model, task_losses, each, token_mask=real) for each in (batches, others)]
    assert same(*reports)
    unmasked = [dtme.analyze(model, task_losses, each, variance_ratio=3.0) for each in (batches, others)]
    assert not torch.equal(unmasked[0].range_rate, unmasked[1].range_rate)


def test_whole_numbers_do_and_streams_of_a_plan_as_well(model: Silent):
    batches = make_batches(model, (3, 2))
    report = dtme.analyze(model, task_losses, batches, token_mask=real)
    assert same(report, dtme.analyze(model, task_losses, batches, token_mask=lambda batch: real(batch).long()))
    dtme.apply(model, dtme.Plan(TEXT, {"encoder.layers.0": TEXT}))  # streams part, and modulators change nothing yet
    parted = dtme.analyze(model, task_losses, batches, token_mask=real)
    torch.testing.assert_close(parted.range_rate, report.range_rate, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (
            torch.ones(2, 6).bool(),
            r"shape \(2, 6\), but 2 samples of 7 tokens enter block 'encoder.layers.0'.*functional.pad",
        ),
        (torch.ones(3, 7).bool(), r"shape \(3, 7\), but 2 samples of 7"),
        (torch.ones(14).bool(), r"is of shape \(14,\): a tensor \(samples, tokens\)"),
        ([[True] * 7] * 2, "is of type list"),
        (torch.ones(2, 7), "is of type torch.float32: give booleans"),
        (torch.full((2, 7), 2), "is of type torch.int64: give booleans, or whole numbers 0 and 1"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(model: Silent, mask: Any, says: str):
    hooks = {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=rf"(?s)token_mask\(batch\).*{says}"):
        dtme.analyze(model, task_losses, make_batches(model, (2,)), token_mask=lambda batch: mask)
    assert hooks == {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}


def test_a_grid_is_masked_in_the_order_of_its_rows():
    block, tokens = nn.Linear(4, 4), torch.randn(2, 2, 3, 4)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0]])
    with capture({"block": block}, differentiable=False, token_mask=lambda batch: mask) as caught:
        with caught.reading(None):
            block(tokens)
        entry = caught.entries["block"]
        shown = entry.valid_samples([torch.where(mask.view(2, 2, 3, 1) > 0, tokens, torch.nan)])
    assert torch.equal(shown, tokens.flatten(1, 2) * mask[:, :, None])  # not even what is no number comes through


class Told(nn.Module):
    """Takes any mask and minds none."""

    def __init__(self, hides: bool = False):
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 2, batch_first=True) if hides else nn.Linear(4, 4)

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        return tokens


KEEP = torch.tensor([[1, 1, 0], [1, 1, 1]])
PAIRS = KEEP[:, :, None] * KEEP[:, None, :]
TOLD = {
    "0 and 1 in floats": {"attention_mask": KEEP.float()},
    "added, a row per sample": {"attention_mask": (1.0 - KEEP) * -10000.0},
    "added, in half precision": {"attention_mask": torch.zeros(2, 3).half().masked_fill(KEEP == 0, -65504)},
    "0 and 1 in floats, over pairs": {"attention_mask": PAIRS[:, None].double()},
    "0 and 1, over pairs": {"attention_mask": PAIRS[:, None]},
    "added, over pairs": {"attention_mask": torch.zeros(2, 1, 3, 3).masked_fill(PAIRS[:, None] == 0, -torch.inf)},
    "three dimensions": {"mask": PAIRS.bool()},
    "one row of queries": {"mask": KEEP[:, None].bool()},
    "padding, marked": {"src_key_padding_mask": KEEP == 0},
    "padding, marked by numbers": {"src_key_padding_mask": 1 - KEEP},
    "padding, marked by floats": {"src_key_padding_mask": 1.0 - KEEP},
    "padding, added": {"src_key_padding_mask": torch.zeros(2, 3).masked_fill(KEEP == 0, -torch.inf)},
    "beside a causal mask": {
        "attention_mask": torch.ones(2, 1, 3, 3).tril().bool(),
        "src_key_padding_mask": KEEP == 0,
    },
    "beside masks of others": {
        "attention_mask": KEEP,
        "memory_key_padding_mask": KEEP == 1,
        "encoder_attention_mask": 1 - PAIRS[:, None],
    },
}


@pytest.mark.parametrize("kind", TOLD)
def test_a_mask_is_read_as_it_is_meant(kind: str):
    block = Told()
    with capture({"block": block}, differentiable=False) as caught:
        block(torch.randn(2, 3, 4), **TOLD[kind])
    assert torch.equal(caught.entries["block"].valid, KEEP.bool())


@pytest.mark.parametrize("heads", [1, 2])
def test_in_masks_of_torch_true_hides(heads: int):
    block = Told(hides=True)
    with capture({"block": block}, differentiable=False) as caught:
        block(torch.randn(2, 3, 4), mask=(PAIRS == 0).repeat_interleave(heads, 0))
    assert torch.equal(caught.entries["block"].valid, KEEP.bool())


@pytest.mark.parametrize(
    "told",
    [
        {"mask": torch.zeros(3, 3)},
        {"attention_mask": torch.zeros(1, 1, 3, 3)},
        {"memory_key_padding_mask": KEEP == 0},
        {"encoder_attention_mask": PAIRS[:, None]},
    ],
)
def test_what_speaks_of_no_sample_or_of_other_tokens_is_no_padding(told: dict[str, Tensor]):
    block = Told()
    with capture({"block": block}, differentiable=False) as caught:
        block(torch.randn(2, 3, 4), **told)
    assert caught.entries["block"].valid is None


def test_a_mask_of_unknown_meaning_is_named():
    block = Told()
    says = r"block 'block' is given 'mask', a mask \(2, 3\) with a row per sample.*token_mask"
    with capture({"block": block}, differentiable=False), pytest.raises(ValueError, match=says):
        block(torch.randn(2, 3, 4), mask=KEEP.bool())
    with capture({"block": block}, differentiable=False, token_mask=lambda batch: batch) as caught:
        with caught.reading(KEEP):
            block(torch.randn(2, 3, 4), mask=KEEP.bool())
        assert torch.equal(caught.entries["block"].valid, KEEP.bool())


def test_the_reference_knows_the_padding_too(model: Silent):
    (batch,) = make_batches(model, (4,))
    samples = reference.samples_at(model, "encoder.layers.1", task_losses, [batch], TEXT, 0)
    assert [int(sample.valid.sum()) for sample in samples] == real(batch).sum(1).tolist()
