"""The price of a plan is arithmetic; here it is held against the FLOP counter on models that the plan is applied to."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dtme
from dtme.cost import price
from dtme.flops import FlopCount
from dtme.products import plain_products
from zoo import ZOO, Entry

KINDS = ("ViT", "Swin v2", "bert", "llama", "deberta-v2", "torch encoder, batch first", "torch encoder, tokens first")
"""Fused and written-out attention, one table for all streams, layers between the blocks, masks, samples behind positions."""


def counted(model: nn.Module, sample: dict[str, Tensor]) -> int:
    with torch.no_grad(), plain_products(), FlopCounterMode(display=False) as counter:
        model(**sample)
    return counter.get_total_flops()


def drawn_plans(entry: Entry, count: int) -> list[dtme.Plan]:
    """Any tasks in any blocks: streams of several tasks, streams with and without task tokens side by side."""
    draw = random.Random(0)

    def placed(wanted: bool) -> dict[str, tuple[str, ...]]:
        some = {block: tuple(task for task in entry.tasks if draw.random() < 0.5) for block in entry.blocks}
        return {block: tasks for block, tasks in some.items() if wanted and draw.random() < 0.6}

    plans = [
        dtme.Plan(
            entry.tasks,
            placed(True),
            placed(entry.no_tokens is None),
            placed(number % 2 == 1),
            tokens_per_task=number % 3 + 1,
            rank=2,
            joint_tokens=number % 4 == 2,
            adapt_layers=entry.adapt_layers,
        )
        for number in range(count)
    ]
    return [*plans, dtme.Plan(entry.tasks, placed(True), copies={entry.blocks[1]: entry.tasks[2:], **placed(True)})]


@pytest.mark.parametrize("name", KINDS)
def test_arithmetic_equals_the_counter_on_the_applied_model(name: str):
    entry = ZOO[name]
    model, sample = entry.make(), entry.inputs()
    plans = drawn_plans(entry, 4)
    assert any(plan.adapt for plan in plans)
    assert any(plan.joint_tokens and plan.expand for plan in plans) or entry.no_tokens
    plain = counted(model, sample)
    branches = [model.get_submodule(f"heads.{task}") for task in entry.tasks]
    count = FlopCount(model, (), branches, entry.adapt_layers)
    with torch.no_grad(), plain_products(), count.first_pass():
        model(**sample)
    assert plans[0].cost(model, sample) == price(plans[0], count.flops())
    for plan in plans:
        cost = price(plan, count.flops())
        assert cost.plain_flops == plain
        dtme.apply(model, plan)
        assert cost.flops == counted(model, sample), plan
        dtme.remove(model)


def test_a_block_without_a_place_for_task_tokens_says_so():
    swin = ZOO["Swin"]
    block = swin.blocks[0]
    with pytest.raises(ValueError, match=f"block {block!r} cannot take what is planned there. expand: .*no place"):
        dtme.Plan(swin.tasks, expand={block: swin.tasks}).cost(swin.make(), swin.inputs())
