"""Tasks whose plan is the same up to a block share a stream there: the cost is the streams, the outputs are their own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dtme
from dtme.trunk.blocks import find_blocks
from zoo import ZOO

NAMES = ("ViT", "BEiT", "Swin", "PVT v2", "bert", "distilbert", "llama", "t5 encoder", "torch encoder, tokens first",
         "by hand, tuples")  # fmt: skip
Inputs = dict[str, Tensor]


def losses(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    outputs = model(**inputs)
    return {
        task: (output.sin() * (place + 1)).flatten(1).mean() for place, (task, output) in enumerate(outputs.items())
    }


def products(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Per block, the floating-point operations of its products."""
    with FlopCounterMode(display=False, depth=None) as counter, torch.no_grad():
        model(**inputs)
    counts = {key.partition(".")[2]: sum(kinds.values()) for key, kinds in counter.get_flop_counts().items()}
    return {block: counts[block] for block in find_blocks(model)}


def streams(blocks: Sequence[str], tasks: Sequence[str], plan: dtme.Plan) -> list[int]:
    """Per block, how many different histories of modulators the tasks have: one for each that has any, one for the rest."""
    apart: set[str] = set()
    counts = []
    for block in blocks:
        apart |= set(plan.modulate.get(block, ()))
        counts.append(len(apart) + (len(apart) < len(tasks)))
    return counts


def filled(base: nn.Module, plan: dtme.Plan) -> Any:
    model = dtme.apply(copy.deepcopy(base), plan)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3 + 1.0)
    return model


def parted_from_the_start(model: Any, plan: dtme.Plan, tasks: Sequence[str], base: nn.Module) -> Any:
    """The same plan with modulators that change nothing for every task in every block, so that no two tasks share."""
    every = dict.fromkeys(find_blocks(base), tuple(tasks))
    apart = dtme.apply(copy.deepcopy(base), dtme.Plan(tuple(tasks), every))
    with torch.no_grad():
        for block, given in plan.modulate.items():
            for row, task in enumerate(given):
                for own in ("scale", "shift"):
                    theirs = apart.get_submodule(block).dtme._parameters[own]
                    theirs[tuple(tasks).index(task)] = model.get_submodule(block).dtme._parameters[own][row]
    return apart


def assert_shared(base: nn.Module, plan: dtme.Plan, tasks: Sequence[str], inputs: Inputs) -> list[int]:
    plain, blocks = products(base, inputs), list(find_blocks(base))
    model = filled(base, plan)
    counts = streams(blocks, tasks, plan)
    assert products(model, inputs) == {block: count * plain[block] for block, count in zip(blocks, counts, strict=True)}
    apart = parted_from_the_start(model, plan, tasks, base)
    with torch.no_grad():
        shared, separate = model(**inputs), apart(**inputs)
    for task in tasks:
        torch.testing.assert_close(shared[task], separate[task], rtol=1e-10, atol=1e-10)
    assert products(apart, inputs) == {block: len(tasks) * count for block, count in plain.items()}
    return counts


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_by_threshold_costs_its_streams(name: str):
    entry = ZOO[name]
    base, inputs = entry.make(), entry.inputs()
    report = dtme.analyze(base, losses, [inputs])
    rates = report.range_rate[report.range_rate > 0].unique().tolist()
    found = set()
    for low, high in pairwise([0.0, *rates]):
        plan = report.plan(fraction=1.0, expansion=False, pair_threshold=(low + high) / 2)
        given = frozenset(plan.modulate.items())
        if given in found or not given:
            continue
        found.add(given)
        if len(found) <= 2:
            assert_shared(base, plan, entry.tasks, inputs)
    assert len(found) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_by_hand_costs_its_streams(name: str):
    entry = ZOO[name]
    blocks, (one, two, three) = entry.blocks, entry.tasks
    plan = dtme.Plan(entry.tasks, {blocks[1]: (two,), blocks[-1]: (one, three)})
    counts = assert_shared(entry.make(), plan, entry.tasks, entry.inputs())
    assert counts == [1, *[2] * (len(blocks) - 2), 3]
