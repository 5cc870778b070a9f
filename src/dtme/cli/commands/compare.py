"""`dtme compare`: what a plan resolved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from dtme.cli.answer import Answer, UsageError, listed
from dtme.cli.paths import check_input

if TYPE_CHECKING:
    from torch import Tensor

SPACES = ("range", "null")


def compare(before: Positional[Path], after: Positional[Path]) -> Answer:
    """Tell where conflict fell between two reports of one model, and where it rose. The answer is no where it fell nowhere.

    A change counts where it is larger than the half-widths of both reports.

    Args:
        before: A report of the model without the plan.
        after: One of the model with it, over the same tasks and blocks.
    """
    import torch

    from dtme import ConflictReport

    reports = []
    for path in (before, after):
        check_input(path, "a report that `dtme analyze` wrote")
        try:
            reports.append(ConflictReport.load(path))
        except ValueError as error:
            raise UsageError(str(error)) from error
    for what in ("tasks", "blocks"):
        one, other = (getattr(report, what) for report in reports)
        if one != other:
            raise UsageError(
                f"{before} and {after} have other {what}, {list(one)} and {list(other)}: compare like with like."
            )
    blocks: dict[str, dict[str, Any]] = {name: {} for name in reports[0].blocks}
    for space in SPACES:
        scores = [getattr(report, f"{space}_score")() for report in reports]
        noise = torch.hypot(*(_mean(getattr(report, f"{space}_halfwidth")) for report in reports))
        for place, name in enumerate(blocks):
            old, new, width = (float(values[place]) for values in (*scores, noise))
            change = "-" if not abs(new - old) > width else "fell" if new < old else "rose"
            blocks[name][space] = {"before": old, "after": new, "half_width": width, "change": change}
    fell, rose = ([f"{name} ({space})" for name in blocks for space in SPACES if blocks[name][space]["change"] == kind]
                  for kind in ("fell", "rose"))  # fmt: skip
    rows = {name: "   ".join(map(_cell, own.values())) for name, own in blocks.items()}
    head = {"block": "range: before, after        null: before, after"}
    verdict = f"Of {2 * len(blocks)} places conflict fell in {len(fell)} and rose in {len(rose)}, more than samples leave open."
    data = {"fell": fell, "rose": rose, "blocks": blocks, "samples": [report.samples for report in reports]}
    return Answer(data, f"{listed({**head, **rows}, '')}\n\n{verdict}", yes=bool(fell))


def _cell(found: dict[str, Any]) -> str:
    return f"{found['before']:.3f} → {found['after']:.3f}  {found['change']:<4}"


def _mean(halfwidth: Tensor) -> Tensor:
    """A bound for the half-width of a mean over pairs: the mean of theirs, as if they moved together."""
    tasks = halfwidth.shape[-1]
    return halfwidth.sum((1, 2)) / (tasks * (tasks - 1))
