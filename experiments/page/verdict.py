"""What the numbers say, in one plain sentence, whichever way they point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

Row = Mapping[str, Any]

_DTME = ("TM+TE", "TE", "TM")  # the whole method speaks for it; a part of it only where the whole was not run


def dtme_row(results: Mapping[str, Any]) -> Row | None:
    """The row that stands for DTME: TM+TE, a part of it, or the first that inserts. Never the best of several."""
    named = (row for method in _DTME for row in results["rows"] if row["method"] == method)
    inserting = (row for row in results["rows"] if row.get("streams_part_at") is not None)
    return next(chain(named, inserting), None)


def row_of(results: Mapping[str, Any], method: str) -> Row | None:
    """The row of a method, if it was run."""
    return next((row for row in results["rows"] if row["method"] == method), None)


def outcome(results: Mapping[str, Any]) -> str:
    """One sentence on how DTME did against plain multi-task training, and at what price.

    Where neither TM+TE nor a part of it was run, it speaks of what the row inserts and not of DTME: it may be a control.
    The two are level where their difference vanishes in the two decimals that the table shows.

    Example:
        >>> def row(method, delta_m, depth):
        ...     return {"method": method, "delta_m": delta_m, "metrics": {"depth": depth}}
        >>> tasks = [{"name": "depth", "metric": "RMSE", "higher_is_better": False}]
        >>> outcome({"suite": "scenes", "tasks": tasks, "rows": [row("MT", -1.5, 0.6), row("TM+TE", -2.0, 0.7)]})
        'On scenes, DTME (TM+TE) ends behind plain multi-task training: its Δm is 0.50 points lower (−2.00 % against
        −1.50 %) and it is better on 0 of 1 task.'
    """
    plain, ours = row_of(results, "MT"), dtme_row(results)
    if plain is None or ours is None:
        missing = " and ".join(name for name, row in (("plain multi-task", plain), ("DTME", ours)) if row is None)
        return f"On {results['suite']} there is nothing to compare yet: no {missing} row was run."
    levels = [_percent(row.get("delta_m")) for row in (ours, plain)]
    if None in (ours.get("delta_m"), plain.get("delta_m")):
        verdict = "cannot be compared to plain multi-task training by Δm, which needs single-task rows:"
    else:
        ahead = round(ours["delta_m"] - plain["delta_m"], 2)
        against = f"({levels[0]} against {levels[1]})"
        if ahead > 0:
            verdict = f"ends ahead of plain multi-task training: its Δm is {ahead:.2f} points higher {against} and"
        elif ahead < 0:
            verdict = f"ends behind plain multi-task training: its Δm is {-ahead:.2f} points lower {against} and"
        else:
            verdict = f"ends level with plain multi-task training in Δm {against} and"
    better, compared = _wins(results["tasks"], ours, plain)
    who = "DTME" if ours["method"] in _DTME else "training with inserts"
    tasks = "task" if compared == 1 else "tasks"
    price = _price(ours)
    return (
        f"On {results['suite']}, {who} ({ours['method']}) {verdict} it is better on {better} of {compared} {tasks}"
        f"{', ' + price if price else ''}."
    )


def _wins(tasks: Sequence[Mapping[str, Any]], ours: Row, plain: Row) -> tuple[int, int]:
    better = compared = 0
    for task in tasks:
        values = [row["metrics"].get(task["name"]) for row in (ours, plain)]
        if None not in values:
            compared += 1
            better += values[0] > values[1] if task["higher_is_better"] else values[0] < values[1]
    return better, compared


def _price(ours: Row) -> str:
    parts = []
    if ours.get("parameters_added") is not None:
        share = ours.get("parameters_added_percent")
        parts.append(f"{ours['parameters_added']:,} more parameters" + ("" if share is None else f" ({share:.2f} %)"))
    if ours.get("step_cost") is not None:
        parts.append(f"{ours['step_cost']:.2f} times the cost of a training step")
    return "for " + " and ".join(parts) if parts else ""


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f} %".replace("-", "−").replace("+0.00", "0.00")
