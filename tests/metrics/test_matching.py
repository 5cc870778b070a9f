from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from dtme.metrics.matching import count_matches


def row(*columns, width=12):
    image = np.zeros((1, 3, width), bool)
    image[0, 1, list(columns)] = True
    return image


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


def test_images_do_not_match_each_other():
    predicted, true = np.zeros((2, 2, 4, 4), bool)
    predicted[0, 3, 3] = true[1, 0, 3] = True
    assert count_matches(predicted, true, 3.0) == 0


@pytest.mark.parametrize("distance", [1.0, 1.5, 2.3, 5.0])
def test_equals_an_assignment_of_all_pixels(distance):
    random = np.random.default_rng(int(10 * distance))
    for density in (0.05, 0.2, 0.5):
        predicted, true = random.random((2, 3, 11, 14)) < density
        expected = 0
        for one, other in zip(predicted, true, strict=True):
            gaps = np.linalg.norm(np.argwhere(one)[:, None] - np.argwhere(other)[None], axis=-1)
            lonely = gaps > distance
            expected += int((~lonely[linear_sum_assignment(lonely.astype(float))]).sum())
        assert count_matches(predicted, true, distance) == expected


def test_diagonal_neighbours_are_root_two_away():
    predicted, true = np.zeros((2, 1, 4, 4), bool)
    predicted[0, 1, 1] = true[0, 2, 2] = True
    assert count_matches(predicted, true, 1.4) == 0
    assert count_matches(predicted, true, math.sqrt(2)) == 1
