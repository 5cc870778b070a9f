"""Several seeds of one method against plain training: every difference is taken within a seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """How a figure of one method differs from that of another, seed by seed.

    Attributes:
        seeds: Pairs.
        mean: Of the differences.
        halfwidth: Of the interval that holds the true mean difference at 95 %, Student's t; infinite for one seed.
        p: Two-sided, of Student's t; 1 for one seed.
    """

    seeds: int
    mean: float
    halfwidth: float
    p: float


def paired(own: Sequence[float], other: Sequence[float]) -> Paired:
    """Compare two methods over the seeds they share.

    Args:
        own: The figure of one method, a value per seed.
        other: The figure of the other, in the same order of seeds.

    Raises:
        ValueError: The lengths differ, or there is nothing to compare.

    Example:
        >>> found = paired([1.2, 1.4, 1.1, 1.3, 1.5], [1.0, 1.1, 1.0, 1.2, 1.2])
        >>> round(found.mean, 2), round(found.halfwidth, 3), round(found.p, 4)
        (0.2, 0.124, 0.0111)
    """
    if len(own) != len(other) or not own:
        raise ValueError(f"paired: {len(own)} and {len(other)} values. Give one value per seed and method.")
    from scipy.stats import t

    differences = [mine - theirs for mine, theirs in zip(own, other, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return Paired(1, mean, math.inf, 1.0)
    error = statistics.stdev(differences) / math.sqrt(count)
    if error == 0:
        return Paired(count, mean, 0.0, 0.0 if mean else 1.0)
    return Paired(count, mean, float(t.ppf(0.975, count - 1)) * error, float(2 * t.sf(abs(mean) / error, count - 1)))


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds, 0 for one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
