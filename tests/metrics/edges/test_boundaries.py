from __future__ import annotations

import numpy as np

from dtme.metrics.edges.boundaries import region_boundaries
from dtme.metrics.edges.thinning import thin


def test_hand_computed():
    regions = np.array([[1, 1, 1, 4], [1, 7, 1, 4], [1, 1, 1, 1]])
    # The 7 and the three pixels from which it lies east, south or south-east; what borders on the 4; the pixel above
    # the lowest row whose south neighbour is another region.
    expected = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(region_boundaries(regions), expected)


def test_equals_a_loop_over_pixels():
    regions = np.random.default_rng(0).integers(3, size=(7, 9))
    for y in range(7):
        for x in range(9):
            neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            inside = [place for place in neighbours if place[0] < 7 and place[1] < 9]
            assert region_boundaries(regions)[y, x] == any(regions[place] != regions[y, x] for place in inside)


def test_towards_what_is_not_known_there_is_no_boundary():
    regions = np.array([[1, 1, 9, 2, 2, 3]])
    assert region_boundaries(regions, regions != 9).astype(int).tolist() == [[0, 0, 0, 0, 1, 0]]


def test_a_line_of_edge_pixels_stays_one_line():
    """As NYUD-v2's edge maps are taken for maps of regions: moved by at most a pixel."""
    edges = np.zeros((20, 20), bool)
    edges[10, 3:17] = True
    rims = thin(region_boundaries(edges))
    assert rims.sum() in range(12, 16)
    assert set(np.flatnonzero(rims.any(1))) <= {9, 10}
