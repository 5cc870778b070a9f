"""Differences within seeds, against scipy's own test and by hand."""

import math

import pytest
from scipy.stats import ttest_rel

from experiments.runner.paired_t import paired, spread

OWN, OTHER = [3.1, 2.9, 3.6, 3.3, 2.2], [2.0, 2.5, 3.1, 3.4, 1.1]


def test_the_paired_test_is_scipys():
    found, known = paired(OWN, OTHER), ttest_rel(OWN, OTHER)
    interval = known.confidence_interval(0.95)
    assert found.p == pytest.approx(known.pvalue)
    assert (found.mean - found.halfwidth, found.mean + found.halfwidth) == pytest.approx((interval.low, interval.high))
    assert found.seeds == 5


def test_one_seed_proves_nothing():
    found = paired([1.0], [0.5])
    assert (found.mean, found.halfwidth, found.p) == (0.5, math.inf, 1.0)


def test_equal_differences():
    assert paired([1.0, 2.0], [0.0, 1.0]).p == 0.0
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 1.0


def test_seeds_must_match():
    with pytest.raises(ValueError, match="2 and 1 values"):
        paired([1.0, 2.0], [1.0])


def test_spread():
    assert spread([1.0]) == 0
    assert spread([1.0, 3.0]) == pytest.approx(math.sqrt(2))
