"""Our own default: what streams carry decides what they gain, and where they part what they cost, so they part late."""

from __future__ import annotations

from collections.abc import Iterator

from dtme.plan.budget import Step, choose_within
from dtme.plan.cost import ModelFlops, price
from dtme.plan.plan import Placement, Plan
from dtme.plan.rates import ConflictRates


def recommend(rates: ConflictRates, max_cost: float | None, rank: int | None) -> Plan:
    """The plan of `ConflictReport.recommended`.

    Raises:
        ValueError: The report holds no FLOPs, the blocks take no updates, or not even the cheapest plan fits the budget.
    """
    flops = rates.flops
    if isinstance(flops, str):
        raise ValueError(
            f"recommended: the report holds no FLOPs of the model, without which no cost is known: {flops}"
        )
    steps: list[Step] = []
    for places in _go_forward(rates.blocks, flops):
        plan = _carry(rates.tasks, places, rank)
        try:
            steps.append(Step(price(plan, flops).ratio, float(len(steps)), plan))
        except ValueError as why:
            if steps:  # as far forward as updates can be made
                break
            remedy = "" if rank is None else " Take copies: recommended(rank=None)."
            raise ValueError(f"rank={rank}: {why}{remedy}") from None
        if max_cost is None:
            return plan
    assert max_cost is not None
    return choose_within(steps, max_cost)


def _go_forward(blocks: tuple[str, ...], flops: ModelFlops) -> Iterator[tuple[str, ...]]:
    """Where inserts may go, more and more from the end of the trunk: each block from its last part on, then whole."""
    for first in reversed(range(len(blocks))):
        known = flops.blocks.get(blocks[first])
        late = None if known is None else known.late
        if late is not None:
            yield (late, *blocks[first + 1 :])
        yield blocks[first:]


def _carry(tasks: tuple[str, ...], places: tuple[str, ...], rank: int | None) -> Plan:
    """Updates of a rank for every task, or a copy for every task but the first, which keeps the block."""
    if rank is None:
        copies: Placement = dict.fromkeys(places, tasks[1:])
        return Plan(tasks, copies=copies)
    return Plan(tasks, adapt=dict.fromkeys(places, tasks), rank=rank)
