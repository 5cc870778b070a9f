from __future__ import annotations

import math

import numpy as np
import pytest

from dtme.metrics.edges.suppression import suppress_non_maxima


def ridge(angle, size=41, width=3.0):
    """A Gaussian ridge through the middle that is crossed in a direction, and each pixel's distance from its crest."""
    y, x = np.mgrid[:size, :size] - size // 2
    distance = x * math.cos(angle) + y * math.sin(angle)
    return np.exp(-((distance / width) ** 2)).astype(np.float32), np.abs(distance)


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 90, 110, 135, 160])
def test_only_the_crest_is_left(degrees):
    strength, distance = ridge(math.radians(degrees))
    kept = suppress_non_maxima(strength)
    np.testing.assert_array_equal(kept[kept > 0], strength[kept > 0])
    middle = np.s_[8:-8, 8:-8]  # towards the border the mirror image bends the ridge
    assert (kept[middle][distance[middle] < 0.4] > 0).all()
    assert not kept[middle][distance[middle] > 1.2].any()


def literal_suppression(strength):
    """Pixel by pixel, with all coordinates spelled out."""
    height, width = strength.shape
    weights = [1, 2, 3, 4, 5, 4, 3, 2, 1]

    def mirrored(place, size):
        while not 0 <= place < size:
            place = -1 - place if place < 0 else 2 * size - 1 - place
        return place

    def derivative(values):
        """Half of the difference of both neighbours, at the border the difference to the one there is."""
        last = len(values) - 1
        return [
            (values[min(i + 1, last)] - values[max(i - 1, 0)]) / (min(i + 1, last) - max(i - 1, 0))
            for i in range(last + 1)
        ]

    def along(axis, values):
        return np.apply_along_axis(derivative, axis, values)

    smooth = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            for i in range(9):
                for j in range(9):
                    place = mirrored(y + i - 4, height), mirrored(x + j - 4, width)
                    smooth[y, x] += weights[i] * weights[j] / 625 * strength[place]
    xx, xy, yy = along(1, along(1, smooth)), along(1, along(0, smooth)), along(0, along(0, smooth))
    kept = strength.copy()
    for y in range(height):
        for x in range(width):
            angle = math.atan((-1 if xy[y, x] > 0 else 1) * yy[y, x] / (xx[y, x] + 1e-5)) % math.pi
            for step in (-1, 1):
                v = min(max(y + step * math.sin(angle), 0), height - 1.001)
                u = min(max(x + step * math.cos(angle), 0), width - 1.001)
                j, i = int(u), int(v)
                further = (1 - (v - i)) * ((1 - (u - j)) * strength[i, j] + (u - j) * strength[i, j + 1])
                further += (v - i) * ((1 - (u - j)) * strength[i + 1, j] + (u - j) * strength[i + 1, j + 1])
                if 1.01 * strength[y, x] < further:
                    kept[y, x] = 0
    return kept


@pytest.mark.parametrize("shape", [(17, 13), (2, 3), (5, 30)])
def test_equals_a_loop_over_pixels(shape):
    strength = np.random.default_rng(0).random(shape).astype(np.float32)
    kept = suppress_non_maxima(strength)
    np.testing.assert_array_equal(kept, literal_suppression(strength))
    assert 0 < (kept > 0).sum() < kept.size


def test_plateaus_stay():
    flat = np.full((9, 9), 0.5, np.float32)
    np.testing.assert_array_equal(suppress_non_maxima(flat), flat)


def test_an_exactly_horizontal_ridge_stays_wide_as_published():
    strength, _ = ridge(math.radians(90))
    strength = np.tile(strength[:, :1], (1, 41))  # with every column the same to the last bit
    middle = np.s_[8:-8, 20]
    assert (suppress_non_maxima(strength)[middle] > 0).sum() == 1
    assert (suppress_non_maxima(strength, as_published=True)[middle] > 0).all()


def test_towards_the_border_edges_are_weakened_as_published():
    ones = np.ones((20, 30), np.float32)
    weak = suppress_non_maxima(ones, as_published=True)
    np.testing.assert_allclose(weak[10, :7], [0, 0.2, 0.4, 0.6, 0.8, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(weak[-7:, 15], [1, 1, 0.8, 0.6, 0.4, 0.2, 0], rtol=1e-6)
    assert weak[2, 3] == pytest.approx(0.4 * 0.6)  # in a corner twice
    narrow = suppress_non_maxima(ones[:4], as_published=True)
    np.testing.assert_allclose(narrow[:, 15], [0, 0.5, 0.5, 0], rtol=1e-6)  # at most half the side
    np.testing.assert_array_equal(suppress_non_maxima(ones), ones)


def test_an_image_one_pixel_wide_is_left_as_it_is():
    line = np.array([[0.1, 0.7, 0.2]], np.float32)
    np.testing.assert_array_equal(suppress_non_maxima(line), line)
