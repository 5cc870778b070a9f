"""A row of a table against another, or against plain multi-task training, paired by seed, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.runner.jsonl import rows_of
from experiments.runner.paired_t import paired


def against(runs: Sequence[Mapping[str, Any]], method: str, other: str, figure: str) -> list[str]:
    """The difference of a figure to that of another row, with the half-width of its 95 % interval where there is one, and its p.

    Args:
        runs: Results, one per seed.
        method: A row of them.
        other: Another one.
        figure: What of the rows is compared.

    Example:
        >>> rows = [{"method": "MT", "mean": 70.0}, {"method": "TM", "mean": 71.5}]
        >>> against([{"seed": 0, "rows": rows}], "TM", "MT", "mean")
        ['+1.50', '-']
    """
    own, others = rows_of(runs, method), rows_of(runs, other)
    seeds = [seed for seed in own if seed in others]
    if not seeds:
        return ["-", "-"]
    found = paired([own[seed][figure] for seed in seeds], [others[seed][figure] for seed in seeds])
    if math.isinf(found.halfwidth):
        return [f"{found.mean:+.2f}", "-"]
    return [f"{found.mean:+.2f} ± {found.halfwidth:.2f}", "<0.001" if found.p < 0.001 else f"{found.p:.3f}"]


def against_plain(runs: Sequence[Mapping[str, Any]], method: str, figure: str) -> list[str]:
    """The difference of a figure to that of MT, which differs from itself by nothing."""
    return ["0", "-"] if method == "MT" else against(runs, method, "MT", figure)
