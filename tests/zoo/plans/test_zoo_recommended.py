"""Our own default on the whole zoo: it can be applied, changes nothing at first, costs what it says, and trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtme
from dtme.plan.cost import ModelFlops, price
from zoo import ZOO, assert_same, gradients_of

UPDATES_REFUSED = {"CoAtNet": "has no linear layer to adapt", "deberta-v2": "streams cannot be told apart"}
"""Models whose last block takes no updates, and why."""


def losses(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {task: (0.1 * place - out).square().mean() for place, (task, out) in enumerate(model(**inputs).items())}


@pytest.mark.parametrize("rank", [2, None])
@pytest.mark.parametrize("name", list(ZOO))
def test_the_recommended_plan_runs(name: str, rank: int | None):
    entry = ZOO[name]
    model: Any = entry.make()
    sample = entry.inputs()
    report = dtme.analyze(model, losses, [sample])
    assert isinstance(report.flops, ModelFlops)
    if rank is not None and name in UPDATES_REFUSED:
        with pytest.raises(ValueError, match=rf"{UPDATES_REFUSED[name]}.* Take copies: recommended\(rank=None\)"):
            report.recommended(rank=rank)
        return
    plan = report.recommended(rank=rank)
    (place,) = plan.blocks
    block = report.blocks[-1]
    late = report.flops.blocks[block].late
    assert place == (block if late is None else late)
    assert dtme.cost(model, plan, sample).ratio == price(plan, report.flops).ratio
    with torch.no_grad():
        expected = model(**sample)
    dtme.apply(model, plan)
    assert_same(model(**sample), expected, rtol=1e-9, atol=1e-9)
    torch.stack(list(losses(model, sample).values())).sum().backward()
    added = {name for name, _ in dtme.added_parameters(model)}
    assert added <= set(gradients_of(model))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("ViT", "trunk.blocks.2.mlp"),
        ("Swin", "trunk.layers.1.blocks.1.mlp"),
        ("llama", "trunk.layers.2.mlp"),
        ("clip text", "trunk.encoder.layers.2.mlp"),
        ("t5 encoder", "trunk.encoder.block.2.layer.1"),
        ("bert", "trunk.encoder.layer.2"),
        ("torch encoder, batch first", "trunk.layers.2"),
        ("by hand, maps", "blocks.3"),
    ],
)
def test_streams_part_in_the_last_mlp_where_it_is_a_module(name: str, place: str):
    entry = ZOO[name]
    report = dtme.analyze(entry.make(), losses, [entry.inputs()])
    assert report.recommended().blocks == (place,)
