"""Suppression of what is no maximum across an edge."""

from __future__ import annotations

import numpy as np

from dtme._shapes import Float

_SLACK = 1.01
"""A pixel stays unless a neighbour is larger by more than this factor, so that plateaus stay whole."""

_BORDER = 5
"""Pixels along each side in which the published tool weakens edges, or half the side where that is less."""

_TRIANGLE = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1], np.float32) / 25


def suppress_non_maxima(strength: Float[np.ndarray, "h w"], *, as_published: bool = False) -> Float[np.ndarray, "h w"]:
    r"""Set to zero where an edge's strength is less than a pixel further across the edge, on either side.

    With $S$ the strength smoothed by a triangle of radius 4, an edge is crossed in the direction

    $$ \theta = \arctan\left(\frac{-\operatorname{sgn}(S_{xy}) S_{yy}}{S_{xx} + 10^{-5}}\right) \bmod \pi $$

    (Dollár and Zitnick, "Fast edge detection using structured forests", TPAMI 2015), and the unsmoothed strength is
    interpolated bilinearly at one pixel on either side. Where $S_{xy}$ is 0, the sign counts as -1.

    Args:
        strength: Strength of edges, not negative.
        as_published: Do what the published tool does besides: where $S_{xy}$ is 0, its sign is 0, too, so that an edge that
            is exactly horizontal is crossed along itself, and stays as wide as it is; and edges in the image's five
            outermost pixels are weakened towards nothing.

    Returns:
        The strength, or 0.

    Example:
        >>> ridge = np.tile(np.array([0.0, 0.2, 0.6, 0.9, 0.5, 0.1, 0.0], np.float32), (9, 1))
        >>> suppress_non_maxima(ridge)[4]
        array([0. , 0. , 0. , 0.9, 0. , 0. , 0. ], dtype=float32)
    """
    if min(strength.shape) < 2:
        return strength.copy()  # one pixel wide: there is no direction to cross it in
    strength = strength.astype(np.float32)
    angle = _across(strength, -1.0 if not as_published else 0.0)
    kept = strength * ~(_further(strength, angle, -1) | _further(strength, angle, 1))
    return _weakened(kept) if as_published else kept


def _weakened(kept: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Towards the border, in steps."""
    for axis, side in enumerate(kept.shape):
        place, reach = np.arange(side), min(_BORDER, side // 2)
        factor = np.minimum(1, np.minimum(place, place[::-1]) / reach).astype(np.float32)
        kept = kept * np.expand_dims(factor, 1 - axis)
    return kept


def _across(strength: Float[np.ndarray, "h w"], sign_of_zero: float) -> Float[np.ndarray, "h w"]:
    """The angle in which an edge is crossed, from the second derivatives of the smoothed strength."""
    smooth = _smoothed(_smoothed(strength).T).T
    along_y, along_x = np.gradient(smooth)
    xx = np.gradient(along_x, axis=1)
    yy, xy = np.gradient(along_y)
    turn = np.where(xy == 0, np.float32(-sign_of_zero), -np.sign(xy))
    return np.arctan(yy * turn / (xx + np.float32(1e-5))) % np.float32(np.pi)


def _smoothed(rows: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Down the columns, with the image mirrored at its border."""
    radius = len(_TRIANGLE) // 2
    mirrored = np.pad(rows, ((radius, radius), (0, 0)), mode="symmetric")
    smooth = np.zeros_like(rows)
    for first, weight in enumerate(_TRIANGLE):
        smooth += weight * mirrored[first : first + len(rows)]
    return smooth


def _further(strength: Float[np.ndarray, "h w"], angle: Float[np.ndarray, "h w"], step: int) -> np.ndarray:
    """Where the strength one step across the edge is larger."""
    height, width = strength.shape
    x = np.clip(np.arange(width, dtype=np.float32) + step * np.cos(angle), 0, width - 1.001)
    y = np.clip(np.arange(height, dtype=np.float32)[:, None] + step * np.sin(angle), 0, height - 1.001)
    left, top = x.astype(np.int32), y.astype(np.int32)
    x, y, first = x - left, y - top, top * width + left
    flat = strength.reshape(-1)
    upper = (1 - x) * flat[first] + x * flat[first + 1]
    lower = (1 - x) * flat[first + width] + x * flat[first + width + 1]
    return _SLACK * strength < (1 - y) * upper + y * lower
