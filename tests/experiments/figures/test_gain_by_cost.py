"""Gains against costs: every method has its dot, its interval and a name that is written over nothing."""

import math

import pytest

from experiments.figures.arm_gains import ArmGain, arm_gains
from experiments.figures.gain_by_cost import KINDS, Point, gain_by_cost

POINTS = [
    Point("TM", "paper", 3.0, 0.09, 0.19),
    Point("TM+TE", "paper", 3.0, 0.07, 0.18),
    Point("MT as long as TM+TE", "plain", 3.0, 0.1, 0.2),
    Point("Adapt last block", "ours", 1.6, 0.43, 0.1),
    Point("own last block", "copies", 1.68, 0.44, math.inf),
    Point("PCGrad", "control", 2.6, -0.1, 0.2),
]


def test_names_do_not_lie_on_each_other_nor_leave_the_page():
    figure = gain_by_cost("suite", POINTS, 1.5, 5)
    figure.canvas.draw()
    texts = {text.get_text(): text for text in figure.axes[1].texts}
    boxes = [texts[point.label].get_window_extent() for point in POINTS]
    for place, box in enumerate(boxes):
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:place])


def test_the_key_stays_on_the_page():
    figure = gain_by_cost("suite", POINTS, 1.5, 5)
    figure.canvas.draw()
    page = figure.axes[0]
    key = {text.get_text(): text.get_window_extent() for text in page.texts if text.get_text().startswith("● ")}
    assert set(key) == {f"● {words}" for _, words in KINDS.values()}
    top = figure.axes[1].get_window_extent().y1
    assert all(box.x1 <= figure.bbox.x1 and box.y0 > top for box in key.values())


def test_every_method_is_drawn_where_it_stands_in_its_colour():
    figure = gain_by_cost("suite", POINTS, 1.5, 5)
    dots = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    drawn = [(float(dot.get_xdata()[0]), float(dot.get_ydata()[0]), dot.get_color()) for dot in dots]
    assert drawn == [(point.cost, point.mean, KINDS[point.kind][0]) for point in POINTS]


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        gain_by_cost("suite", [], 1.5, 5)
    with pytest.raises(ValueError, match="nothing to draw"):
        arm_gains("title", "axis", [], 5)


def test_an_arm_has_its_dot_its_interval_and_its_cost():
    figure = arm_gains(
        "rank", "rank", [ArmGain("1", 0.4, 0.1, "1.40 x"), ArmGain("4", 0.9, math.inf, "1.50 x", own=True)], 5
    )
    page, axes = figure.axes
    dots = [(float(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [(0.4, 0), (0.9, 1)]
    assert {"1.40 x", "1.50 x"} <= {text.get_text() for text in page.texts}
    bars = [
        tuple(map(float, line.get_xdata()))
        for line in axes.lines
        if len(set(line.get_ydata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert (pytest.approx(0.3), pytest.approx(0.5)) in bars
