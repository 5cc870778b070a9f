from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from scipy.spatial import KDTree

from dtme.metrics.edges.matching import count_at_thresholds, count_matches
from dtme.metrics.edges.thinning import thin


def row(*columns, width=12):
    image = np.zeros((3, width), bool)
    image[1, list(columns)] = True
    return image


def assigned(predicted, true, distance):
    """The matches of an assignment of all pixels to all pixels that leaves as few as possible alone."""
    gaps = np.linalg.norm(np.argwhere(predicted)[:, None] - np.argwhere(true)[None], axis=-1)
    lonely = gaps > distance
    return int((~lonely[linear_sum_assignment(lonely.astype(float))]).sum())


def flow(predicted, true, distance):
    """The largest flow from a source through predicted pixels and true pixels near them to a sink."""
    places, others = np.argwhere(predicted), np.argwhere(true)
    n, m = len(places), len(others)
    pairs = KDTree(places).sparse_distance_matrix(KDTree(others), distance, output_type="coo_matrix")
    tails = np.concatenate([np.full(n, n + m), pairs.row, n + np.arange(m)])
    heads = np.concatenate([np.arange(n), n + pairs.col, np.full(m, n + m + 1)])
    network = csr_array((np.ones(len(tails), np.int32), (tails, heads)), shape=(n + m + 2, n + m + 2))
    return int(maximum_flow(network, n + m, n + m + 1).flow_value)


@pytest.mark.parametrize(
    ("predicted", "true", "distance", "pairs"),
    [
        (row(2, 5), row(2, 5), 0.0, 2),
        (row(2), row(3), 0.99, 0),
        (row(2), row(3), 1.0, 1),
        (row(2), row(5), 2.99, 0),
        (row(2), row(5), 3.0, 1),
        (row(1, 2, 3), row(2), 1.0, 1),  # one true pixel matches once
        (row(2), row(1, 2, 3), 1.0, 1),  # one predicted pixel matches once
        (row(), row(1), 1.0, 0),
        (row(1), row(), 1.0, 0),
        (row(0), row(11), 1.0, 0),  # no neighbourhood around the image's border
        # Taking the nearest pairs first, (1, 1) and (2, 2), leaves 0 and 3 alone with three pixels between them.
        (row(0, 1, 2), row(1, 2, 3), 1.0, 3),
    ],
)
def test_hand_made(predicted, true, distance, pairs):
    assert count_matches(predicted, true, distance) == pairs
    assert count_matches(true, predicted, distance) == pairs


def test_a_chain_is_shifted_to_its_end():
    """Each predicted pixel has a true one where it is, but only the shift of all leaves none alone."""
    assert count_matches(row(0, 1, 2, 3, 4, 5, 6, 7), row(1, 2, 3, 4, 5, 6, 7, 8), 1.0) == 8
    assert count_matches(row(0, 1, 2, 3, 4, 5, 6, 7), row(1, 2, 3, 4, 5, 6, 7, 9), 1.0) == 7


@pytest.mark.parametrize("distance", [1.0, 1.5, 2.3, 5.0, 40.0])
def test_equals_an_assignment_of_all_pixels(distance):
    random = np.random.default_rng(int(10 * distance))
    for density in (0.05, 0.2, 0.5):
        predicted, true = random.random((2, 11, 14)) < density
        assert count_matches(predicted, true, distance) == assigned(predicted, true, distance)


def test_equals_the_largest_flow_on_maps_as_large_as_images():
    random = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(random.standard_normal((3, 200, 240)), (0, 2, 2))
    true, predicted = thin(noise[0] + noise[1] > 0.05), thin(noise[0] + noise[2] > 0.1)
    assert 1000 < true.sum() < 10000
    for distance in (1.5, 4.0, 7.73):
        assert count_matches(predicted, true, distance) == flow(predicted, true, distance)


def test_diagonal_neighbours_are_root_two_away():
    predicted, true = np.zeros((2, 4, 4), bool)
    predicted[1, 1] = true[2, 2] = True
    assert count_matches(predicted, true, 1.4) == 0
    assert count_matches(predicted, true, math.sqrt(2)) == 1


@given(arrays(np.int16, (9, 11), elements=st.integers(0, 5)), st.sampled_from([0.0, 1.0, 2.0, 3.7]))
def test_going_on_from_threshold_to_threshold_changes_nothing(levels, distance):
    """Thinning takes pixels at one threshold that it leaves at the next higher one: pairs come undone on the way."""
    true = thin((np.arange(99).reshape(9, 11) * 7 % 5) < 2)
    predicted, matched = count_at_thresholds(levels, true, 5, distance)
    for k in range(5):
        lines = thin(levels > k)
        assert predicted[k] == lines.sum()
        assert matched[k] == assigned(lines, true, distance)


def test_pairs_come_undone_between_thresholds():
    """What the test above is about happens in it: the pixels of one threshold are no subset of the next one's."""
    levels = np.zeros((7, 9), np.int16)
    levels[2:5, 1:8] = 1
    levels[4, 1:8] = 2
    high, low = thin(levels > 1), thin(levels > 0)
    assert (high & ~low).sum() >= 5
    predicted, matched = count_at_thresholds(levels, high, 2, 0.0)
    assert predicted.tolist() == [low.sum(), 7]
    assert matched.tolist() == [(high & low).sum(), 7]


def test_no_predicted_and_no_true_pixels():
    nothing, something = np.zeros((5, 5), np.int16), np.full((5, 5), 3, np.int16)
    for levels, true in ((nothing, something > 0), (something, nothing > 0), (nothing, nothing > 0)):
        predicted, matched = count_at_thresholds(levels, true, 3, 2.0)
        assert predicted.tolist() == [thin(levels > 0).sum()] * 3
        assert matched.tolist() == [0, 0, 0]
