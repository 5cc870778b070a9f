"""The price of a plan is arithmetic from one plain pass: on the whole zoo, what the plan costs when it is applied, to the FLOP.

What is promised is less, 3 % at most.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from torch import Tensor, nn

import dtme
from dtme.measure.flops import count_flops
from dtme.plan.cost import ModelFlops, price
from zoo import FEW, ZOO, Entry


def counted(entry: Entry, model: Any) -> ModelFlops:
    return count_flops(model, lambda: model(**entry.inputs()), entry.blocks)


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
            placed(number % 2 == 1 and entry.adapt_layers is None),
            tokens_per_task=number % 3 + 1,
            rank=2 + 6 * number,
            joint_tokens=number % 4 == 2,
        )
        for number in range(count)
    ]
    return [*plans, dtme.Plan(entry.tasks, placed(True), copies={entry.blocks[1]: entry.tasks[2:], **placed(True)})]


def late_plans(entry: Entry, flops: ModelFlops) -> list[dtme.Plan]:
    """Streams that part in the last part of a block, where there is one: in the first block and in the last."""
    late = [block.late for block in flops.blocks.values() if block.late is not None]
    return [
        *(dtme.Plan(entry.tasks, adapt={part: entry.tasks}, rank=3) for part in late[:1]),
        *(dtme.Plan(entry.tasks, copies={part: entry.tasks[1:]}) for part in late[-1:]),
    ]


@pytest.mark.parametrize("name", list(ZOO))
def test_the_estimate_is_what_the_plan_costs(name: str):
    entry = ZOO[name]
    model, sample = entry.make(), entry.inputs()
    flops = counted(entry, model)
    for plan in [*drawn_plans(entry, 4 if name in FEW else 2), *late_plans(entry, flops)]:
        told, cost = price(plan, flops), dtme.cost(model, plan, sample)
        assert told == cost, plan


def losses(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {task: (0.1 * place - out).square().mean() for place, (task, out) in enumerate(model(**inputs).items())}


@pytest.mark.parametrize("name", FEW)
def test_a_budget_is_kept_by_the_plan_it_buys(name: str):
    entry = ZOO[name]
    model, sample = entry.make(), entry.inputs()
    report = dtme.analyze(model, losses, [sample])
    for max_cost in (1.5, 2.0, 2.8):
        for adaptation in (False, True):
            plan = report.plan(max_cost=max_cost, expansion=entry.no_tokens is None, adaptation=adaptation)
            cost = dtme.cost(model, plan, sample, task_losses=losses)
            assert 1 < cost.ratio <= max_cost


def test_a_block_without_a_place_for_task_tokens_says_so():
    swin = ZOO["Swin"]
    block = swin.blocks[0]
    plan = dtme.Plan(swin.tasks, expand={block: swin.tasks})
    says = rf"block '{block}' cannot take what is planned there. expand: .*no place in block '{block}'"
    with pytest.raises(ValueError, match=says):
        price(plan, counted(swin, swin.make()))
    with pytest.raises(ValueError, match="expand: task tokens have no place"):
        dtme.cost(swin.make(), plan, swin.inputs())
