"""Gains against parameters: every kind of streams has its marker where it stands, in the colour of what they carry."""

import math

import pytest

from experiments.figures.gain_by_parameters import CONTENTS, Carried, gain_by_parameters

POINTS = [
    Carried("paper", 1.4, 3.1, 0.1, 0.2),
    Carried("updates", 20.0, 1.6, 0.5, 0.1),
    Carried("mixed", 31.0, 2.3, 0.9, math.inf),
    Carried("copies", 33.0, 1.5, 0.7, 0.2),
]


def test_colour_tells_what_is_carried_and_the_marker_what_it_costs():
    axes = gain_by_parameters("suite", POINTS, 1.5, 3).axes[1]
    markers = [line for line in axes.lines if line.get_marker() != "None"]
    drawn = [(float(m.get_xdata()[0]), float(m.get_ydata()[0]), m.get_color(), m.get_marker()) for m in markers]
    shapes = ["^", "o", "s", "o"]
    assert drawn == [
        (point.parameters, point.mean, CONTENTS[point.contents][0], shape)
        for point, shape in zip(POINTS, shapes, strict=True)
    ]


def test_the_key_names_what_is_drawn_and_nothing_else():
    page = gain_by_parameters("suite", POINTS[:2], 1.5, 3).axes[0]
    words = [text.get_text() for text in page.texts]
    assert [word for word in words if word.startswith("● ")] == ["● modulators, task tokens", "● low-rank updates"]


@pytest.mark.parametrize("points", [POINTS, POINTS[:1]])
def test_nothing_leaves_the_page(assert_on_page, points):
    figure = gain_by_parameters("scenes: what streams gain by what they carry", points, 2.5, 3)
    assert_on_page(figure)


def test_one_seed_has_no_intervals():
    axes = gain_by_parameters("suite", POINTS[2:3], 1.5, 1).axes[1]
    assert axes.get_ylabel() == "Δm over MT, in points (one seed)"
    assert [tuple(line.get_ydata()) for line in axes.lines if line.get_marker() == "None"][2:] == [(0.9, 0.9)]


@pytest.mark.parametrize("points", [[], [Carried("paper", 0.0, 3.1, 0.1, 0.2)]])
def test_what_cannot_be_drawn_is_refused(points):
    with pytest.raises(ValueError, match="above 0"):
        gain_by_parameters("suite", points, 1.5, 3)
