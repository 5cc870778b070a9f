"""Loops over pixels, compiled by numba: thinning, and one-to-one matching that goes on from threshold to threshold.

Images are flat here and framed by at least one row and column of nothing, so that a neighbour lies at a fixed distance. All
kernels stand in one file since numba's cache on disk looks for changes in a kernel's own file only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function in machine code, which other threads may run meanwhile, kept on disk where there is a place for it."""
    try:
        return njit(cache=True, nogil=True)(function)
    except (
        RuntimeError
    ):  # neither the package's folder nor the user's cache can be written: every process compiles anew
        return njit(nogil=True)(function)


@compiled
def peel(
    mask: NDArray[Any], todo: NDArray[Any], queued: NDArray[Any], table: NDArray[Any], steps: NDArray[Any]
) -> None:
    """Thin a mask in place: delete pixels on one side, then on the other, until nothing more can go.

    A pixel is looked at again only after a neighbour has gone, so that it costs as much as there are pixels, not images.

    Args:
        mask: 1 on pixels, uint8.
        todo: `(3, n)`; the n pixels of the mask in the first two rows.
        queued: Per place, bit 0 and bit 1 where a pixel stands in the first and in the second row; uint8. Zeros afterwards.
        table: Per side and arrangement of the eight neighbours, whether a pixel goes.
        steps: To the eight neighbours, in the order of the arrangement's bits.
    """
    lengths = np.array([todo.shape[1], todo.shape[1]])
    side = 0
    while lengths[0] > 0 or lengths[1] > 0:
        gone = 0
        for i in range(lengths[side]):
            pixel = todo[side, i]
            queued[pixel] &= np.uint8(2 - side)  # no longer in this side's row
            if mask[pixel]:
                arrangement = 0
                for j in range(8):
                    arrangement |= int(mask[pixel + steps[j]]) << j
                if table[side, arrangement]:
                    todo[2, gone] = pixel
                    gone += 1
        lengths[side] = 0
        for i in range(gone):
            mask[todo[2, i]] = 0
        for i in range(gone):
            for j in range(8):
                pixel = todo[2, i] + steps[j]
                if mask[pixel]:
                    for row in range(2):
                        if not (queued[pixel] >> row) & 1:
                            queued[pixel] |= np.uint8(1 << row)
                            todo[row, lengths[row]] = pixel
                            lengths[row] += 1
        side = 1 - side


class Pairs(NamedTuple):
    """A matching and what the search for a larger one works in; `-1` is nobody.

    Attributes:
        true_of: Per place, the true pixel that a predicted one is paired with, by its number.
        pixel_of: Per true pixel, the place of the predicted one.
        first: Per place, where its near true pixels begin in the list of all such; -1 where they are not listed yet.
        last: Where they end.
        free_from: Per place, from where on its near true pixels may be free.
        any_from: Per place, from where on they have not been followed.
        seen: Per true pixel, the round in which it was last reached.
        path: Places of the path that is being followed.
    """

    true_of: NDArray[Any]
    pixel_of: NDArray[Any]
    first: NDArray[Any]
    last: NDArray[Any]
    free_from: NDArray[Any]
    any_from: NDArray[Any]
    seen: NDArray[Any]
    path: NDArray[Any]


@compiled
def no_pairs(places: int, true: int) -> Pairs:
    """Nothing matched yet."""
    return Pairs(
        np.full(places, -1, np.int32),
        np.full(true, -1, np.int32),
        np.full(places, -1, np.int32),
        np.zeros(places, np.int32),
        np.zeros(places, np.int32),
        np.zeros(places, np.int32),
        np.zeros(true, np.int32),
        np.empty(true + 1, np.int32),
    )


@compiled
def list_near(
    pixel: int, pairs: Pairs, near: NDArray[Any], used: int, true_at: NDArray[Any], offsets: NDArray[Any]
) -> tuple[NDArray[Any], int]:
    """List a pixel's near true pixels, nearest first, behind those listed; the list, longer where need be, and its end."""
    if used + offsets.size > near.size:
        longer = np.empty(2 * near.size + offsets.size, np.int32)
        longer[:used] = near[:used]
        near = longer
    pairs.first[pixel] = used
    for offset in offsets:
        true = true_at[pixel + offset]
        if true >= 0:
            near[used] = true
            used += 1
    pairs.last[pixel] = used
    return near, used


@compiled
def free_neighbour(pixel: int, pairs: Pairs, near: NDArray[Any]) -> int:
    """The next of a pixel's near true pixels that is paired with nobody, or -1."""
    while pairs.free_from[pixel] < pairs.last[pixel]:
        true = int(near[pairs.free_from[pixel]])
        pairs.free_from[pixel] += 1
        if pairs.pixel_of[true] < 0:
            return true
    return -1


@compiled
def step_into(pixel: int, depth: int, pairs: Pairs) -> None:
    """Put a pixel on the path, with all that is near it before it."""
    pairs.path[depth] = pixel
    pairs.free_from[pixel] = pairs.first[pixel]
    pairs.any_from[pixel] = pairs.first[pixel]


@compiled
def augment(root: int, pairs: Pairs, near: NDArray[Any], turn: int) -> bool:
    """Pair one more pixel by re-pairing those along a path to a free true pixel; whether there was such a path.

    True pixels that were reached earlier in this round are not reached again.
    """
    depth = 0
    step_into(root, depth, pairs)
    while depth >= 0:
        pixel = pairs.path[depth]
        true = free_neighbour(pixel, pairs, near)
        if true >= 0:
            while depth >= 0:
                pixel = pairs.path[depth]
                given_up = pairs.true_of[pixel]
                pairs.true_of[pixel] = true
                pairs.pixel_of[true] = pixel
                true = given_up
                depth -= 1
            return True
        deeper = False
        while pairs.any_from[pixel] < pairs.last[pixel] and not deeper:
            true = near[pairs.any_from[pixel]]
            pairs.any_from[pixel] += 1
            if pairs.seen[true] != turn:
                pairs.seen[true] = turn
                deeper = True
        if deeper:
            depth += 1
            step_into(pairs.pixel_of[true], depth, pairs)
        else:
            depth -= 1
    return False


@compiled
def pair_all(waiting: NDArray[Any], pairs: Pairs, near: NDArray[Any], turn: int) -> tuple[int, int]:
    """Pair as many of the waiting pixels as can be, beside those paired; how many were, and the number of the last round.

    Rounds of depth-first searches that share what they have reached (Pothen and Fan, "Computing the block triangular form of
    a sparse matrix", TOMS 1990). A round without success proves that there is no augmenting path, hence, after Berge, no
    larger matching.
    """
    left, paired = waiting.size, 0
    while left:
        turn += 1
        kept = 0
        for i in range(left):
            if not augment(waiting[i], pairs, near, turn):
                waiting[kept] = waiting[i]
                kept += 1
        paired += left - kept
        if kept == left:
            break
        left = kept
    return paired, turn


@compiled
def sweep(
    pixels: NDArray[Any],
    above: NDArray[Any],
    true_at: NDArray[Any],
    true: int,
    offsets: NDArray[Any],
    table: NDArray[Any],
    steps: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Thin and match at every threshold, from the highest to the lowest.

    The pairs found at one threshold hold at the next one but for pixels that thinning takes there, so that only what has
    changed is searched; the number of pairs is the largest at each.

    Args:
        pixels: Places, from those that pass most thresholds to those that pass one.
        above: Per threshold, how many of them pass it.
        true_at: Per place the number of its true pixel, or -1.
        true: How many true pixels there are.
        offsets: To the places near one, nearest first.
        table: As of `peel`; no sides, and nothing is thinned.
        steps: As of `peel`.

    Returns:
        Per threshold the predicted pixels, and the matched ones.
    """
    predicted, matched = np.zeros_like(above), np.zeros_like(above)
    mask, queued = np.zeros(true_at.size, np.uint8), np.zeros(true_at.size, np.uint8)
    todo = np.empty((3, pixels.size), np.int32)
    pairs = no_pairs(true_at.size, true)
    near, used = np.empty(1024, np.int32), 0
    lines, waiting = np.empty(pixels.size, np.int32), np.empty(pixels.size, np.int32)
    count = paired = turn = 0
    for k in range(above.size - 1, -1, -1):
        passing = pixels[: above[k]]
        for pixel in passing:
            mask[pixel] = 1
        if table.shape[0]:
            for i, pixel in enumerate(passing):
                todo[0, i] = todo[1, i] = pixel
                queued[pixel] = 3
            peel(mask, todo[:, : passing.size], queued, table, steps)
        for pixel in lines[:count]:
            if not mask[pixel] and pairs.true_of[pixel] >= 0:
                pairs.pixel_of[pairs.true_of[pixel]] = -1
                pairs.true_of[pixel] = -1
                paired -= 1
        count = left = 0
        for pixel in passing:
            if mask[pixel]:
                mask[pixel] = 0
                lines[count] = pixel
                count += 1
                if pairs.first[pixel] < 0:
                    near, used = list_near(pixel, pairs, near, used, true_at, offsets)
                if pairs.true_of[pixel] < 0 and pairs.first[pixel] < pairs.last[pixel]:
                    waiting[left] = pixel
                    left += 1
        gained, turn = pair_all(waiting[:left], pairs, near, turn)
        paired += gained
        predicted[k], matched[k] = count, paired
    return predicted, matched
