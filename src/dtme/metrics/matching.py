"""One-to-one matching of predicted with true edge pixels."""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from dtme._shapes import Bool, Int


def count_matches(predicted: Bool[np.ndarray, "b h w"], true: Bool[np.ndarray, "b h w"], distance: float) -> int:
    """The largest number of disjoint pairs of a predicted and a true pixel of one image, at most a distance apart.

    This is a maximum-cardinality bipartite matching, found for the whole batch at once as the largest flow from a
    source through predicted pixels and true pixels near them to a sink, one unit through each (Dinic's algorithm,
    which on such a network takes the steps of Hopcroft and Karp). The Berkeley boundary benchmark minimises the
    summed distance of the pairs plus a high price for each pixel left alone: its pairs may be others, their number is
    the same but for chains of shifts so long that they cost more than that price.

    Args:
        predicted: Predicted edge pixels.
        true: True edge pixels.
        distance: Largest Euclidean distance of a pair, in pixels.

    Returns:
        The number of pairs, over all images.

    Example:
        >>> row = lambda *columns: np.isin(np.arange(5), columns)[None, None]
        >>> count_matches(row(0, 1), row(1, 2), distance=1.0)  # nearest first would pair 1 with 1 and stop
        2
    """
    offsets = _offsets(distance)
    margin = int(distance)
    frame = ((0, 0), (margin, margin), (margin, margin))
    framed = np.pad(true, frame)
    numbers = np.where(framed, np.cumsum(framed, dtype=np.int32).reshape(framed.shape) - 1, -1)

    pixels = np.flatnonzero(np.pad(predicted, frame))
    near = numbers.ravel()[pixels[:, None] + offsets @ np.array([framed.shape[2], 1])]
    near = near[(near >= 0).any(1)]  # at low thresholds most pixels have no partner at all
    exists = near >= 0

    n, m = len(near), int(framed.sum())
    source, sink = n + m, n + m + 1
    # Row by row what each node leads to: predicted pixels, true pixels, the source and, with nothing, the sink.
    heads = np.concatenate([n + near[exists], np.full(m, sink), np.arange(n)])
    row_ends = np.cumsum(np.concatenate([[0], exists.sum(1), np.ones(m), [n, 0]])).astype(np.int32)
    network = csr_array((np.ones(len(heads), np.int32), heads, row_ends), shape=(n + m + 2, n + m + 2))
    return int(maximum_flow(network, source, sink, method="dinic").flow_value)


def _offsets(distance: float) -> Int[np.ndarray, "o 2"]:
    """The (row, column) steps of at most a distance."""
    reach = range(-int(distance), int(distance) + 1)
    return np.array([(y, x) for y in reach for x in reach if math.hypot(y, x) <= distance])
