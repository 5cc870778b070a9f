"""Boundaries between the regions of a map."""

from __future__ import annotations

import numpy as np

from dtme._shapes import Bool, Shaped


def region_boundaries(
    regions: Shaped[np.ndarray, "h w"], counted: Bool[np.ndarray, "h w"] | None = None
) -> Bool[np.ndarray, "h w"]:
    """The pixels that differ from their neighbour to the east, south or south-east.

    Two regions so have one row of boundary pixels between them, and a region one pixel wide has two. It is how the
    evaluation of InvPT and its predecessors turns PASCAL-Context's label maps and NYUD-v2's edge maps, the latter taken as
    maps of two regions, into true edges.

    Args:
        regions: Numbers of regions, of any type.
        counted: Where they are known; elsewhere there is no boundary, nor towards there. By default everywhere.

    Returns:
        Boundary pixels, not yet thinned.

    Example:
        >>> region_boundaries(np.array([[1, 1, 2], [1, 1, 2]])).astype(int)
        array([[0, 1, 0],
               [0, 1, 0]])
    """
    found = np.zeros(regions.shape, bool)
    for here, there in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
    ):
        differs = regions[here] != regions[there]
        found[here] |= differs if counted is None else differs & counted[here] & counted[there]
    return found
