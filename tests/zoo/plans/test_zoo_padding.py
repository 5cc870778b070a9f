"""The padding that the text trunks of the zoo are told of is found, whatever the type of the mask and the side of the padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers_models import CAUSAL, MODELS, PAD, TEXT, batch_of

import dtme


def losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    outputs = model(**batch)
    return {task: (output @ weight.roll(place)).tanh().mean() for place, (task, output) in enumerate(outputs.items())}


def real(batch: dict[str, Tensor]) -> Tensor:
    return batch["attention_mask"].bool()


def assert_same(one: dtme.ConflictReport, other: dtme.ConflictReport) -> None:
    assert one.range_rank == other.range_rank
    assert one.zero_share == other.zero_share
    assert torch.equal(one.range_rate, other.range_rate)
    assert torch.equal(one.null_rate, other.null_rate)


@pytest.mark.parametrize("kind", [torch.long, torch.bool, torch.float64])
@pytest.mark.parametrize("name", TEXT)
def test_the_mask_that_is_found_is_the_mask_that_is_given(name: str, kind: torch.dtype):
    model, batch = MODELS[name](), batch_of(name)
    if kind != torch.long:
        batch["attention_mask"] = batch["attention_mask"].to(kind)
    assert_same(dtme.analyze(model, losses, [batch]), dtme.analyze(model, losses, [batch], token_mask=real))


LEFT = [*(set(CAUSAL) - {"llama eager"}), "bert", "deberta-v2", "modernbert", "t5 encoder"]
"""Eager attention of Llama gives NaN where a position sees nothing, and the model's losses are NaN with or without us."""


@pytest.mark.parametrize("name", sorted(LEFT))
def test_padding_on_the_left_is_found_and_has_no_influence(name: str):
    model = MODELS[name]()
    batch = {key: value.flip(1) for key, value in batch_of(name).items()}
    other = {**batch, "input_ids": torch.where(batch["input_ids"] == PAD, 9, batch["input_ids"])}
    found = dtme.analyze(model, losses, [batch])
    assert_same(found, dtme.analyze(model, losses, [batch], token_mask=real))
    assert_same(found, dtme.analyze(model, losses, [other]))
