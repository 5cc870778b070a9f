"""A plan as a table for the terminal: what each block gets, for which tasks, and who parts there."""

from __future__ import annotations

from typing import Any


def rows_of(plan: Any) -> list[tuple[str, ...]]:
    """A row for each kind of insert in each block: the block, what it gets, for which tasks, its parameters, and who parts there.

    Args:
        plan: A `Plan`, which prints itself by this.

    Example:
        >>> from dtme.plan.plan import Plan
        >>> rows_of(Plan(("a", "b"), {"x.1": ("a", "b")}, {"x.1": ("b",)}))
        [('x.1', 'modulator', 'a, b', '4 p', 'a, b'), ('x.1', '1 task token', 'b', '1 p', 'a, b')]
    """
    tokens = f"{plan.tokens_per_task} task token{'s' if plan.tokens_per_task > 1 else ''}"
    kinds = (
        ("modulator" if plan.modulator == "affine" else "modulator of batch norm", plan.modulate, 2),
        (f"{tokens}, seen by all" if plan.joint_tokens else tokens, plan.expand, plan.tokens_per_task),
        (f"updates of rank {plan.rank}", plan.adapt, 0),
        ("copy", plan.copies, 0),
    )
    return [
        (block, what, ", ".join(tasks), f"{each * len(tasks)} p" if each else "by its layers", parting or "no one")
        for block, parting in ((block, ", ".join(plan.parting(block))) for block in plan.blocks)
        for what, placement, each in kinds
        if (tasks := placement.get(block))
    ]


def format_plan(plan: Any) -> str:
    """The table, with a heading; what is known of the samples that the plan was chosen by stands below it."""
    rows = [("block", "gets", "for each of", "parameters", "part there"), *rows_of(plan)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(rows) == 1:
        lines = ["nothing is inserted"]
    elif plan.modulate or plan.expand:
        lines.append("p: the channels of a block's tokens, as report.widths has them.")
    return "\n".join([f"Plan for {', '.join(plan.tasks)}", *lines, *plan.notes])
