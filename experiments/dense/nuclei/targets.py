"""What HoVer-Net learns about nuclei, computed from an instance map (Graham et al., Medical Image Analysis 2019).

An instance map numbers the pixels of every nucleus, in any order and with gaps; 0 is background.
"""

from __future__ import annotations

import numpy as np


def mask(instances: np.ndarray) -> np.ndarray:
    """1 on nuclei, 0 on background; `(h, w)`, uint8.

    >>> mask(np.array([[0, 7, 7]]))
    array([[0, 1, 1]], dtype=uint8)
    """
    return (instances > 0).astype(np.uint8)


def boundary(instances: np.ndarray) -> np.ndarray:
    """1 on the pixels of a nucleus that touch anything else, by a side; `(h, w)`, uint8.

    The line is one pixel wide and lies inside the nucleus, so where two nuclei touch each has its own. What lies beyond
    the picture is unknown and makes no boundary.

    >>> boundary(np.array([[0, 7, 7, 7, 9, 9]]))
    array([[0, 1, 0, 1, 1, 0]], dtype=uint8)
    """
    different = np.zeros(instances.shape, dtype=bool)
    across = instances[:, 1:] != instances[:, :-1]
    down = instances[1:] != instances[:-1]
    different[:, 1:] |= across
    different[:, :-1] |= across
    different[1:] |= down
    different[:-1] |= down
    return (different & (instances > 0)).astype(np.uint8)


def distance_maps(instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel lies to the right of, and below, its nucleus's centre of mass.

    Within one nucleus the distances left of the centre are divided by their largest magnitude, and so are those to its
    right, hence each side spans up to -1 or 1 whatever the nucleus's size and shape; likewise above and below.
    Background is 0.

    Args:
        instances: `(h, w)`, integers.

    Returns:
        The horizontal and the vertical map, `(h, w)`, float32 in [-1, 1].

    >>> horizontal, vertical = distance_maps(np.array([[0, 7, 7, 7, 9]]))
    >>> horizontal
    array([[ 0., -1.,  0.,  1.,  0.]], dtype=float32)
    """
    rows, columns = np.nonzero(instances)
    _, nucleus = np.unique(instances[rows, columns], return_inverse=True)
    horizontal = np.zeros(instances.shape, dtype=np.float32)
    vertical = np.zeros(instances.shape, dtype=np.float32)
    horizontal[rows, columns] = _signed_distance(columns, nucleus)
    vertical[rows, columns] = _signed_distance(rows, nucleus)
    return horizontal, vertical


def _signed_distance(position: np.ndarray, nucleus: np.ndarray) -> np.ndarray:
    """Position relative to the nucleus's mean, in units of its farthest pixel on the same side; all `(pixels,)`."""
    offset = position - (np.bincount(nucleus, position) / np.bincount(nucleus))[nucleus]
    before, after = np.zeros((2, nucleus.max(initial=-1) + 1))
    np.maximum.at(before, nucleus, -offset)
    np.maximum.at(after, nucleus, offset)
    extent = np.where(offset < 0, before[nucleus], after[nucleus])
    # A nucleus one pixel wide has no extent: its distance is 0.
    return offset / np.where(extent > 0, extent, 1)
