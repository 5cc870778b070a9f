from __future__ import annotations

import math

import pytest

from dtme.viz.palette import METHODS
from experiments.figures.training_curves import training_curves


@pytest.mark.parametrize("tasks", [1, 3, 4, 11])
def test_a_panel_per_task_and_a_line_per_method(assert_readable, tasks):
    curves = {
        method: {f"task{i}": [(step, math.exp(-step / 30) + i) for step in range(0, 100, 10)] for i in range(tasks)}
        for method in ("ST", "MT", "TM+TE")
    }
    figure = training_curves(curves)
    panels = figure.axes[1:]
    assert [axes.get_title(loc="left") for axes in panels] == [f"task{i}" for i in range(tasks)]
    for axes in panels:
        assert {line.get_label(): line.get_color() for line in axes.lines} == {
            method: METHODS[method] for method in curves
        }
    assert_readable(figure)


@pytest.mark.parametrize("tasks", [1, 4])
def test_the_key_of_many_long_names_has_several_rows_and_a_colour_for_each(assert_readable, tasks):
    names = ["ST", "MT", "TM+TE", *(f"MT as long as Adapt r{rank} last block, even gradients" for rank in range(4))]
    figure = training_curves({name: {f"task{i}": [(0, 1.0), (9, 0.5)] for i in range(tasks)} for name in names})
    assert_readable(figure)
    written = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert set(written) == set(names)
    assert len(set(written.values())) > 1
    assert len({line.get_color() for line in figure.axes[1].lines}) == len(names)


def test_lines_go_through_the_points():
    (line,) = training_curves({"MT": {"depth": [(0, 1.0), (5, 0.5), (9, 0.25)]}}).axes[1].lines
    assert line.get_xydata().tolist() == [[0, 1], [5, 0.5], [9, 0.25]]


def test_many_points_are_drawn_with_their_running_mean():
    points = [(step, float(step % 2)) for step in range(200)]
    measured, mean = training_curves({"MT": {"depth": points}}).axes[1].lines
    assert len(measured.get_xydata()) == 200
    assert mean.get_ydata() == pytest.approx(0.5)  # over 20 points, ten of each
    assert mean.get_xdata()[0] == pytest.approx(9.5)


def test_a_loss_that_is_not_finite_is_left_out():
    (line,) = training_curves({"MT": {"depth": [(0, 1.0), (1, math.nan), (2, math.inf), (3, 0.5)]}}).axes[1].lines
    assert line.get_ydata().tolist() == [1.0, 0.5]


def test_a_method_may_lack_a_task_and_a_task_its_points():
    figure = training_curves({"ST": {"depth": [(0, 1.0)]}, "MT": {"edges": [(0, 1.0)], "depth": []}})
    assert [len(axes.lines) for axes in figure.axes[1:]] == [1, 1]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no method has a curve"):
        training_curves({"MT": {}})
