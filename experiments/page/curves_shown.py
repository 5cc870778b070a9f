"""Which methods are drawn where there are more than the eye can tell apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.page.verdict import dtme_row


def drawn_methods(results: Mapping[str, Any], names: Iterable[str], most: int) -> list[str]:
    """ST, MT, the method of the headline, and beside them those that gain most, in the order given.

    Args:
        results: What was measured, with its rows.
        names: The methods that could be drawn.
        most: How many are.

    Example:
        >>> gains = {"ST": 0.0, "MT": -2.0, "MT 2x": -1.5, "TM+TE": -1.8, "PCGrad": -1.1}
        >>> rows = [{"method": method, "delta_m": gain} for method, gain in gains.items()]
        >>> drawn_methods({"rows": rows}, gains, most=4)
        ['ST', 'MT', 'TM+TE', 'PCGrad']
    """
    names = list(names)
    ours = dtme_row(results)
    always = ["ST", "MT"] if ours is None else ["ST", "MT", ours["method"]]
    known = {row["method"]: row["delta_m"] for row in results["rows"] if row.get("delta_m") is not None}
    by_gain = sorted(names, key=lambda name: known.get(name, -math.inf), reverse=True)
    kept = list(dict.fromkeys([*(name for name in always if name in names), *by_gain]))[:most]
    return [name for name in names if name in kept]
