from __future__ import annotations

import numpy as np
import pytest

from dtme.metrics.edges import _kernels


def test_without_a_place_for_the_cache_every_process_compiles_anew(monkeypatch):
    asked = []

    def njit(**options):
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(_kernels, "njit", njit)
    assert _kernels.compiled(len) is len
    assert asked == [{"cache": True, "nogil": True}, {"nogil": True}]


@pytest.mark.parametrize("count", [1, 2, 50])
def test_the_list_of_near_pixels_grows(count):
    """From an empty list, with a pixel that is near to all of them."""
    true_at = np.arange(count, dtype=np.int32)
    pairs = _kernels.no_pairs(count, count)
    near, used = np.empty(0, np.int32), 0
    for pixel in range(count):
        near, used = _kernels.list_near(pixel, pairs, near, used, true_at, np.arange(-pixel, count - pixel))
    assert used == count * count
    np.testing.assert_array_equal(near[:used].reshape(count, count), np.tile(np.arange(count), (count, 1)))
    np.testing.assert_array_equal(pairs.first, count * np.arange(count))
    np.testing.assert_array_equal(pairs.last, count * np.arange(1, count + 1))
