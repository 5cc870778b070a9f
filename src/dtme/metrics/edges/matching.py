"""One-to-one matching of predicted with true edge pixels."""

from __future__ import annotations

import math

import numpy as np

from dtme._shapes import Bool, Int
from dtme.metrics.edges._kernels import sweep
from dtme.metrics.edges.thinning import going, neighbour_steps


def count_matches(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"], distance: float) -> int:
    """The largest number of disjoint pairs of a predicted and a true pixel, at most a distance apart.

    This is a maximum-cardinality bipartite matching, found by augmenting paths. The Berkeley boundary benchmark minimises
    the summed distance of the pairs plus a high price for each pixel left alone: its pairs may be others, their number is
    the same but for chains of shifts so long that they cost more than that price.

    Args:
        predicted: Predicted edge pixels.
        true: True edge pixels.
        distance: Largest Euclidean distance of a pair, in pixels.

    Returns:
        The number of pairs.

    Example:
        >>> row = lambda *columns: np.isin(np.arange(5), columns)[None]
        >>> count_matches(row(0, 1), row(1, 2), distance=1.0)  # nearest first would pair 1 with 1 and stop
        2
    """
    return int(_sweep(predicted.astype(np.int16), true, 1, distance, np.empty((0, 256), bool))[1][0])


def count_at_thresholds(
    levels: Int[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"], thresholds: int, distance: float
) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " t"]]:
    """Thin one image at every threshold, and match each time.

    Args:
        levels: How many of the increasing thresholds each pixel passes.
        true: True edge pixels, thinned.
        thresholds: How many thresholds there are.
        distance: Largest distance of a match, in pixels.

    Returns:
        Per threshold the predicted edge pixels and those of them that are matched.

    Example:
        >>> true = np.array([[False, True, True, True, False]])
        >>> levels = np.array([[0, 1, 2, 2, 1]])  # at the first threshold four pixels in a row, at the second two
        >>> predicted, matched = count_at_thresholds(levels, true, thresholds=2, distance=0.0)
        >>> predicted.tolist(), matched.tolist()
        ([4, 2], [3, 2])
    """
    return _sweep(levels, true, thresholds, distance, going())


def _sweep(
    levels: Int[np.ndarray, "h w"],
    true: Bool[np.ndarray, "h w"],
    thresholds: int,
    distance: float,
    table: Bool[np.ndarray, "sides 256"],
) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " t"]]:
    # No pair is further apart than the image is long: a wider frame would only cost memory.
    margin = max(1, int(min(distance, math.hypot(*true.shape))))
    flat, framed = np.pad(levels, margin).astype(np.int16).reshape(-1), np.pad(true, margin)
    width, places = framed.shape[1], np.flatnonzero(framed)
    true_at = np.full(framed.size, -1, np.int32)
    true_at[places] = np.arange(len(places))
    above = np.bincount(flat, minlength=thresholds + 1)[::-1].cumsum()[::-1][1:]
    pixels = np.argsort(-flat, kind="stable")[: above[0]].astype(np.int32)
    offsets = (_offsets(distance, margin) @ np.array([width, 1])).astype(np.int32)
    return sweep(pixels, above, true_at, len(places), offsets, table, neighbour_steps(width))


def _offsets(distance: float, margin: int) -> Int[np.ndarray, "o 2"]:
    """The (row, column) steps of at most a distance and within the margin, shortest first."""
    steps = np.mgrid[-margin : margin + 1, -margin : margin + 1].reshape(2, -1).T
    lengths = np.hypot(*steps.T)
    near = np.argsort(lengths, kind="stable")
    return steps[near][lengths[near] <= distance]
