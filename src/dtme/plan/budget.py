"""Plans on a budget: tasks share the trunk's one stream, and part from it where that resolves most conflict per FLOP.

A plan resolves a pair's conflict in a block, in the range space or in the null space, if the two run in different streams
there and at least one of them has an insert of that space: modulators and low-rank updates act in the range space, task
tokens in the null space. The conflict resolved is the sum of the rates of all resolved (block, space, pair). Rates are
taken as measured and not above some level of chance, since that is what the default plan chooses its blocks by: given
all the money, the two resolve the same.

Streams only part, and a task that has an insert has a stream of its own. So a plan is told by the block at which each
task parts from those that still share a stream, and by the blocks that hold inserts, for all tasks that have parted there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

from dtme.plan.cost import price
from dtme.plan.placement import Inserts
from dtme.plan.plan import Plan
from dtme.plan.rates import ConflictRates
from dtme.plan.search import Front, Search, fill_unknown
from dtme.streams.groups import Groups, refine

EXACT = 10_000_000
"""Up to so many ways of parting, `(blocks + 1) ** tasks`, all are looked at."""


@dataclass(frozen=True)
class Step:
    """A plan that resolves more conflict than any cheaper one.

    Attributes:
        cost: Inference of all tasks, as a multiple of the plain model's.
        resolved: Conflict it resolves.
        plan: The plan.
    """

    cost: float
    resolved: float
    plan: Plan


def sum_resolved(rates: ConflictRates, plan: Plan) -> float:
    """The conflict a plan resolves, out of what was measured.

    Raises:
        ValueError: The plan names a block that was not analysed.
    """
    unknown = [block for block in plan.blocks if block not in rates.blocks]
    if unknown:
        raise ValueError(
            f"plan: block {unknown[0]!r} was not analysed; the report has {', '.join(rates.blocks)}. Analyse it as well."
        )
    groups: Groups = (plan.tasks,)
    total = 0.0
    for place, block in enumerate(rates.blocks):
        expanding = () if plan.joint_tokens else plan.expand.get(block, ())
        in_range = {task for place in (plan.modulate, plan.adapt, plan.copies) for task in place.get(block, ())}
        groups = refine(groups, (*in_range, *expanding))
        for inserted, measured in ((in_range, rates.range_rate), (set(expanding), rates.null_rate)):
            known = fill_unknown(measured)
            for one, other in combinations(range(len(rates.tasks)), 2):
                pair = {rates.tasks[one], rates.tasks[other]}
                if pair & inserted and not any(pair <= set(group) for group in groups):
                    total += float(known[place, one, other])
    return total


def choose_within(steps: list[Step], max_cost: float) -> Plan:
    """The plan that resolves most within a budget.

    Raises:
        ValueError: Nothing can be resolved within it; the message names the least cost at which anything is.
    """
    if not max_cost >= 1:
        raise ValueError(f"max_cost={max_cost}: give a multiple of the plain model's inference, above 1.")
    if not steps:
        raise ValueError(f"max_cost={max_cost}: no conflict was measured, so no plan resolves any at whatever cost.")
    affordable = [step for step in steps if step.cost <= max_cost]
    if not affordable:
        least = math.ceil(steps[0].cost * 1e4) / 1e4
        raise ValueError(
            f"max_cost={max_cost}: no plan within it resolves any conflict. The least that does costs {least:.4f} times the "
            f"plain model's inference, with inserts in {', '.join(steps[0].plan.blocks)}: raise max_cost to that."
        )
    return affordable[-1].plan


def find_steps(rates: ConflictRates, inserts: Inserts) -> list[Step]:
    """The plans that resolve more conflict than any cheaper one, by rising cost.

    Given where tasks part, inserts go to the blocks where they resolve most, the later of two that tie: modulators, which
    cost nothing, to as many as allowed, task tokens and low-rank updates to any number of them up to that. With up to
    `EXACT` ways of parting all are compared. With more, tasks part one after another: of all ways to let one task part
    earlier, the one that resolves most per FLOP is taken, until nothing more is resolved, and the plans looked at on the way
    are compared. Of plans that tie, that in which tasks part later is kept.

    Raises:
        ValueError: The report holds no FLOPs, or a block cannot take what is to be inserted; the message says which and why.
    """
    flops = rates.flops
    if isinstance(flops, str):
        raise ValueError(f"max_cost: the report holds no FLOPs of the model, without which no cost is known: {flops}")
    search = Search(rates, flops, inserts)
    front = Front()
    ways = (len(rates.blocks) + 1) ** len(rates.tasks)
    for parting in search.go_every_way() if ways <= EXACT else search.go_one_by_one():
        front.add(*search.evaluate(parting), parting)
    steps = [
        Step(price(plan, flops).ratio, sum_resolved(rates, plan), plan)
        for plan in map(search.make_plan, *front.list_ways())
    ]
    return [step for step in steps if step.resolved > 0]
