"""Thinning of binary images to lines one pixel wide."""

from __future__ import annotations

from functools import cache

import numpy as np

from dtme._shapes import Bool, Int
from dtme.metrics.edges._kernels import peel

NEIGHBOURS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
"""Row and column steps around a pixel, from north clockwise: bit 0 to 7 of an arrangement of neighbours."""


def thin(image: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Thin a binary image.

    Pixels are peeled from both sides until nothing changes, keeping ends of lines and 8-connectivity: Guo and Hall,
    "Parallel thinning with two-subiteration algorithms" (CACM 1989), the thinning of the Berkeley boundary benchmark.

    Args:
        image: Pixels to thin; outside of the image there is nothing.

    Returns:
        The thinned image, a subset of the given one.

    Example:
        >>> thin(np.ones((3, 5), bool)).astype(int)
        array([[0, 0, 0, 0, 0],
               [0, 1, 1, 1, 0],
               [0, 0, 0, 0, 0]])
    """
    framed = np.pad(image, 1).astype(np.uint8)
    mask, pixels = framed.reshape(-1), np.flatnonzero(framed)
    queued = 3 * mask
    peel(mask, np.array([pixels] * 3, np.int32), queued, going(), neighbour_steps(framed.shape[1]))
    return framed[1:-1, 1:-1].astype(bool)


def neighbour_steps(width: int) -> Int[np.ndarray, " 8"]:
    """The steps to the eight neighbours in a flat image of a width."""
    return np.array([row * width + column for row, column in NEIGHBOURS], np.int32)


@cache
def going() -> Bool[np.ndarray, "2 256"]:
    """Per side and arrangement of neighbours, whether the pixel between them goes."""
    bits = (np.arange(256) >> np.arange(8)[:, None] & 1).astype(bool)
    n, ne, east, se, s, sw, west, nw = bits
    # Walking around the pixel, the neighbourhood is entered once if the pixel's neighbours hang together without it.
    entries = (~n & (ne | east), ~east & (se | s), ~s & (sw | west), ~west & (nw | n))
    hangs_together = np.sum(entries, axis=0) == 1
    # The ring as four pairs, in two ways: with fewer than two of them set the pixel ends a line, with all it is inside.
    pairs, turned = (nw | n, ne | east, se | s, sw | west), (n | ne, east | se, s | sw, west | nw)
    set_pairs = np.minimum(np.sum(pairs, axis=0), np.sum(turned, axis=0))
    on_border = hangs_together & (set_pairs >= 2) & (set_pairs <= 3)
    other_side = ((n | ne | ~se) & east, (s | sw | ~nw) & west)
    return np.stack([on_border & ~other for other in other_side])
