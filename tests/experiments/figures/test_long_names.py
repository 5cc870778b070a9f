"""Figures outside of the page: many methods with long names, and still every text lies inside and covers no other."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.figures.arm_gains import ArmGain, arm_gains
from experiments.figures.conflict_changes import conflict_changes
from experiments.figures.cosine_histograms import cosine_histograms
from experiments.figures.gain_by_cost import KINDS, Point, gain_by_cost
from experiments.figures.score_correlations import score_correlations
from experiments.runner.paired_t import Paired

MANY = (
    "MT as long as Adapt r8 last block, even gradients",
    "TM+TE random, same cost",
    "MT, mask x 3, boundary / 3, horizontal x 3, vertical x 3",
    "TM+TE+Adapt",
    "LoRA per task, last block",
    "Adapt within 1.5 x, other tasks",
    "MT wider, as Adapt last block",
)
some = pytest.mark.parametrize("names", [MANY, ("MT",), ("1", "4")])


@some
def test_rank_correlations(assert_readable, names):
    correlations = {name: place / 10 for place, name in enumerate(names)}
    assert_readable(score_correlations({"low-rank updates": correlations, "modulators": correlations}, "nuclei"))
    figure = score_correlations({name: {"depth": 0.5} for name in names}, "nuclei")
    assert_readable(figure)


@some
@pytest.mark.parametrize("seeds", [1, 5])
def test_changes_of_conflict(assert_readable, names, seeds):
    change = {"range": Paired(seeds, -0.02, 0.01, 0.1), "null": Paired(seeds, 0.01, 0.01, 0.1)}
    assert_readable(conflict_changes(dict.fromkeys(names, change), "nuclei", seeds))


@some
def test_cosines(assert_readable, names):
    cosines = np.linspace(-1, 1, 90).reshape(30, 3)
    figure = cosine_histograms(dict.fromkeys(names, cosines), "nuclei")
    assert_readable(figure)
    for axes in figure.axes[1:]:
        lowest = min(text.get_window_extent().y0 for text in axes.get_legend().get_texts())
        assert all(patch.get_window_extent().y1 < lowest for patch in axes.patches)


@some
@pytest.mark.parametrize("seeds", [1, 5])
def test_arms(assert_readable, names, seeds):
    arms = [ArmGain(name, place / 10, 0.1, "1.40 x", own=not place) for place, name in enumerate(names)]
    assert_readable(arm_gains("nuclei: how much an update may change", "rank", arms, seeds))


@some
def test_gains_by_cost(assert_on_page, names):
    kinds = [list(KINDS)[place % len(KINDS)] for place in range(len(names))]
    points = [
        Point(name, kind, 1.1 + place / 4, 0.2 * place, 0.1)
        for place, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    figure = gain_by_cost("nuclei: what is gained, and what it costs", points, 1.5, 5)
    assert_on_page(figure)


def test_one_seed_has_no_intervals():
    label = gain_by_cost("nuclei", [Point("TM", "paper", 3.0, 0.1, float("inf"))], 1.5, 1).axes[1].get_ylabel()
    assert label == "Δm over MT, in points (one seed)"
