"""From pictures of many sizes to square tiles of one size, by a rule without chance.

Pictures are scaled so that a tile always covers 128 x 128 of their pixels: in 64 x 64 tiles a nucleus measures about 4 to
20 pixels. From large pictures only some tiles are taken, or a few of them would outweigh all the others.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

FIELD = 128
"""Pixels of the picture that the side of a tile covers."""

TILES = 8
"""Most tiles taken from one picture."""


def scale(image: np.ndarray, instances: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Photograph `(h, w, 3)` and instance map `(h, w)`, shrunk by `size / 128`.

    The photograph is averaged; of the instance map single pixels are kept, so that no number arises that was not there.
    """
    height, width = (length * size // FIELD for length in instances.shape)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    rows = (np.arange(height) + 0.5) * instances.shape[0] / height
    columns = (np.arange(width) + 0.5) * instances.shape[1] / width
    return np.asarray(small), instances[np.ix_(rows.astype(int), columns.astype(int))]


def stretch(image: np.ndarray) -> np.ndarray:
    """The photograph, uint8, with its exposure evened out: its 0.5 and 99.5 percentiles become 0 and 255.

    Half of the pictures use less than a third of the brightness range. All channels are stretched alike, which keeps
    colours, and at most 8 times, which keeps the noise of an empty picture low.

    >>> stretch(np.array([[[10], [40], [70]]], dtype=np.uint8)).ravel()
    array([  0, 127, 255], dtype=uint8)
    """
    darkest, brightest = np.percentile(image, (0.5, 99.5))
    gain = min(255 / max(brightest - darkest, 1), 8)
    return ((image - darkest) * gain).clip(0, 255).astype(np.uint8)


def corners(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """Upper left corners, (row, column), of the tiles of a scaled picture.

    They lie side by side on a grid centred in the picture; of more than 8, in reading order, 8 at even steps are taken.

    >>> corners(64, 150, 64)
    [(0, 11), (0, 75)]
    >>> len(corners(512, 512, 64))
    8
    """
    top, left = height % size // 2, width % size // 2
    grid = [
        (row, column) for row in range(top, height - size + 1, size) for column in range(left, width - size + 1, size)
    ]
    if len(grid) <= TILES:
        return grid
    return [grid[i * (len(grid) - 1) // (TILES - 1)] for i in range(TILES)]


def cut(picture: np.ndarray, where: list[tuple[int, int]], size: int) -> np.ndarray:
    """The tiles at those corners, `(n, size, size, ...)`, of a picture `(h, w, ...)`."""
    return np.stack([picture[row : row + size, column : column + size] for row, column in where])
