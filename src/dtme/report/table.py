"""Rates as a table for the terminal."""

from __future__ import annotations

from dtme.plan.rates import ConflictRates
from dtme.report.notes import mean_over_pairs

UNEVEN = 3.0
"""How many times the smallest gradient the largest may be before the report says so."""


def format_table(rates: ConflictRates) -> str:
    """Per block the rank, both scores with half-widths and chance, and the pair that conflicts most."""
    name = max(len("block"), *(len(block) for block in rates.blocks))
    lines = [
        f"{'block':<{name}}  {'rank':>9}  {'range score':>14}  chance  {'null score':>14}  chance  fiercest pair (range)"
    ]
    spaces = (
        (rates.range_score(), mean_over_pairs(rates.range_halfwidth), rates.range_chance_score()),
        (rates.null_score(), mean_over_pairs(rates.null_halfwidth), rates.null_chance_score()),
    )
    for place, block in enumerate(rates.blocks):
        pairs = rates.range_rate[place].triu(1)
        first, second = divmod(int(pairs.argmax()), len(rates.tasks))
        cells = []
        for score, halfwidth, chance in spaces:
            known = chance is not None and bool(chance[place].isfinite())
            cells.append(f"{score[place]:.3f} ± {halfwidth[place]:.3f}".rjust(14))
            cells.append(f"{chance[place]:.3f}".rjust(6) if chance is not None and known else "     -")
        rank = f"{rates.range_rank[place]} / {rates.widths[place]}"
        fiercest = f"{rates.tasks[first]} × {rates.tasks[second]}  {float(pairs.max()):.3f}"
        lines.append(f"{block:<{name}}  {rank:>9}  {'  '.join(cells)}  {fiercest}")
    disjoint = any("disjoint" in row for row in rates.pairing)
    lines += [
        "",
        f"{len(rates.tasks)} tasks ({', '.join(rates.tasks)}), {rates.samples} samples, "
        f"variance ratio {rates.variance_ratio:g}, "
        f"half-widths at {rates.level:.0%}{'; some pairs share no input' if disjoint else ''}.",
    ]
    if rates.range_chance is not None:
        lines.append("Chance: the rate between gradients at the same token of different samples.")
    lines += describe_sizes(rates)
    lines += rates.notes
    if rates.undecided and not rates.notes:  # as earlier versions have it
        lines.append(f"Not settled by these samples: {', '.join(rates.undecided)}.")
    return "\n".join(lines)


def describe_sizes(rates: ConflictRates) -> list[str]:
    """How the tasks' gradients compare, and what to try first where one of them drowns the others; nothing if unknown."""
    if rates.gradient_size is None or not bool((rates.gradient_size > 0).all()):
        return []
    relative = {task: 1 / weight for task, weight in rates.even_weights().items()}
    told = ", ".join(f"{task} {size:.2g}" for task, size in sorted(relative.items(), key=lambda own: -own[1]))
    lines = [f"Size of the gradients, the losses as given (geometric mean 1): {told}."]
    if max(relative.values()) > UNEVEN * min(relative.values()):
        lines.append(
            "They are uneven: try other weights of the losses before a plan, which cost nothing (even_weights())."
        )
    return lines
