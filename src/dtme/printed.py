"""A report as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dtme._shapes import Float

if TYPE_CHECKING:
    from dtme.report import ConflictReport

UNEVEN = 3.0
"""How many times the smallest gradient the largest may be before the report says so."""


def printed(report: ConflictReport) -> str:
    """Per block the rank, both scores with half-widths and chance, and the pair that conflicts most."""
    name = max(len("block"), *(len(block) for block in report.blocks))
    lines = [
        f"{'block':<{name}}  {'rank':>9}  {'range score':>14}  chance  {'null score':>14}  chance  fiercest pair (range)"
    ]
    spaces = (
        (report.range_score(), _mean(report.range_halfwidth), report.range_chance_score()),
        (report.null_score(), _mean(report.null_halfwidth), report.null_chance_score()),
    )
    for place, block in enumerate(report.blocks):
        rates = report.range_rate[place].triu(1)
        first, second = divmod(int(rates.argmax()), len(report.tasks))
        cells = []
        for score, halfwidth, chance in spaces:
            known = chance is not None and bool(chance[place].isfinite())
            cells.append(f"{score[place]:.3f} ± {halfwidth[place]:.3f}".rjust(14))
            cells.append(f"{chance[place]:.3f}".rjust(6) if chance is not None and known else "     -")
        rank = f"{report.range_rank[place]} / {report.widths[place]}"
        fiercest = f"{report.tasks[first]} × {report.tasks[second]}  {float(rates.max()):.3f}"
        lines.append(f"{block:<{name}}  {rank:>9}  {'  '.join(cells)}  {fiercest}")
    disjoint = any("disjoint" in row for row in report.pairing)
    lines += [
        "",
        f"{len(report.tasks)} tasks ({', '.join(report.tasks)}), {report.samples} samples, "
        f"variance ratio {report.variance_ratio:g}, "
        f"half-widths at {report.level:.0%}{'; some pairs share no input' if disjoint else ''}.",
    ]
    if report.range_chance is not None:
        lines.append("Chance: the rate between gradients at the same token of different samples.")
    lines += gradient_sizes(report)
    if report.undecided:
        lines.append(f"Not settled by these samples: {', '.join(report.undecided)}.")
    return "\n".join(lines)


def gradient_sizes(report: ConflictReport) -> list[str]:
    """How the tasks' gradients compare, and what to try first where one of them drowns the others; nothing if unknown."""
    if report.gradient_size is None or not bool((report.gradient_size > 0).all()):
        return []
    relative = {task: 1 / weight for task, weight in report.even_weights().items()}
    told = ", ".join(f"{task} {size:.2g}" for task, size in sorted(relative.items(), key=lambda own: -own[1]))
    lines = [f"Size of the gradients, the losses as given (geometric mean 1): {told}."]
    if max(relative.values()) > UNEVEN * min(relative.values()):
        lines.append(
            "They are uneven: try other weights of the losses before a plan, which cost nothing (even_weights())."
        )
    return lines


def _mean(halfwidth: Float[Tensor, "blocks tasks tasks"]) -> Float[Tensor, " blocks"]:
    """A bound for the half-width of a mean over pairs: the mean of theirs, as if they moved together."""
    tasks = halfwidth.shape[-1]
    return halfwidth.sum((1, 2)) / (tasks * (tasks - 1))
