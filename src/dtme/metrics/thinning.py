"""Thinning of binary images to lines one pixel wide."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from dtme._shapes import Int

IMAGES_PER_WORD = 30
"""How many binary images fit into the bits of one 32-bit integer image."""


def thin(images: Int[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """Thin every bit of the integers as a binary image of its own.

    Pixels are peeled from both sides until nothing changes, keeping ends of lines and 8-connectivity: Guo and Hall,
    "Parallel thinning with two-subiteration algorithms" (CACM 1989), the thinning of the Berkeley boundary benchmark.
    Bits make up to `IMAGES_PER_WORD` images, here the thresholds of a sweep, cost as much as one.

    Args:
        images: Non-negative integers; outside of the image there is nothing.

    Returns:
        The thinned images, bit by bit a subset of the given ones.

    Example:
        >>> thin(torch.ones(1, 3, 5, dtype=torch.int32))[0]
        tensor([[0, 0, 0, 0, 0],
                [0, 1, 1, 1, 0],
                [0, 0, 0, 0, 0]], dtype=torch.int32)
    """
    thinned = pad(images, (1, 1, 1, 1))
    changing = torch.arange(len(images), device=images.device)
    while len(changing):
        before = thinned[changing]
        after = _peel(_peel(before, from_west=False), from_west=True)
        thinned[changing] = after
        changing = changing[(after != before).flatten(1).any(1)]
    return thinned[:, 1:-1, 1:-1]


def _peel(framed: Int[Tensor, "b h w"], *, from_west: bool) -> Int[Tensor, "b h w"]:
    """Delete the border pixels that neither end a line nor hold two parts together, on one side.

    The images come in a frame of zeros one pixel wide, so that in the line of all pixels every neighbour lies at a
    fixed distance, also that of the first and the last pixel of a row.
    """
    pixels, row = framed.flatten(), framed.shape[2]
    line = pad(pixels, (row + 1, row + 1))
    nw, n, ne, west, _, east, sw, s, se = (
        line[first : first + len(pixels)] for y in (0, row, 2 * row) for first in (y, y + 1, y + 2)
    )

    # The ring of neighbours as four pairs, in two ways: with fewer than two of them set the pixel ends a line, with all
    # it is inside.
    pairs = (nw | n, ne | east, se | s, sw | west)
    turned = (n | ne, east | se, s | sw, west | nw)
    ends_line = ~(_several(*pairs) & _several(*turned))
    inside = _all(*pairs) & _all(*turned)

    # Walking around the pixel, the neighbourhood is entered once if the pixel's neighbours hang together without it.
    entries = (~n & pairs[1], ~east & pairs[2], ~s & pairs[3], ~west & pairs[0])
    holds_together = _several(*entries) | ~(entries[0] | entries[1] | entries[2] | entries[3])

    other_side = (s | sw | ~nw) & west if from_west else (n | ne | ~se) & east
    return (pixels & (ends_line | inside | holds_together | other_side)).view_as(framed)


def _several(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Bits set in at least two of four."""
    return (a & b) | (c & d) | ((a | b) & (c | d))


def _all(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return a & b & c & d
