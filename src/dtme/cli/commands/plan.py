"""`dtme plan`: what to insert where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from dtme.cli.answer import Answer, UsageError
from dtme.cli.commands.analyze import even_weights
from dtme.cli.paths import check_input, check_output

if TYPE_CHECKING:
    from dtme import ConflictReport, Plan


def plan(
    report: Positional[Path],
    max_cost: float | None = None,
    paper: bool = False,
    rank: int | Literal["none"] = 12,
    out: Path | None = None,
) -> Answer:
    """Decide what to insert where: the recommended plan, or the paper's. Weights of the losses, which cost nothing, come first.

    Args:
        report: What `dtme analyze` wrote.
        max_cost: What inference of all tasks may cost, as a multiple of the plain model's: 1.5, say.
        paper: The paper's plan: modulators and task tokens in the half of the blocks with the most conflict.
        rank: Of the recommended low-rank updates; `none` recommends copies of the last layers.
        out: The plan, JSON, fit for editing.
    """
    check_input(report, "the report that `dtme analyze` wrote")
    check_output(out, ".json")
    if paper and rank != 12:
        raise UsageError(f"--rank {rank} is of the recommended plan; --paper has no low-rank updates. Leave one out.")
    from dtme import ConflictReport

    try:
        found = ConflictReport.load(report)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if paper:
        chosen = found.plan(max_cost=max_cost)
    else:
        chosen = found.recommended(max_cost=max_cost, rank=None if rank == "none" else rank)
    weights, told = even_weights(found)
    if out is not None:
        chosen.save(out)
    kind = "the paper's" if paper else "recommended"
    cost = _price_of(found, chosen)
    data = {
        "kind": kind,
        "cost": cost,
        "plan": chosen.to_dict(),
        "even_weights": weights,
        "out": None if out is None else str(out),
    }
    rate = "" if paper else "\nIts parameters learn best at about three times the trunk's learning rate."
    end = "Not written: --out plan.json writes it." if out is None else f"Written: {out}\nNext: dtme cost mine.py {out}"
    priced = "" if cost is None else f"\nInference of all tasks: {cost:.2f} times the plain model's, by arithmetic."
    return Answer(data, f"{told}\n\nThe plan, {kind}:\n{chosen}{priced}{rate}\n\n{end}")


def _price_of(report: ConflictReport, plan: Plan) -> float | None:
    """What inference of all tasks costs, as a multiple of the plain model's; `None` where the report cannot tell."""
    from dtme.plan.cost import price

    if isinstance(report.flops, str):  # why there are none
        return None
    try:
        return price(plan, report.flops).ratio
    except ValueError:  # `dtme cost`, which has the model, can
        return None
