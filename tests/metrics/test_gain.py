from __future__ import annotations

import math

import pytest

from dtme.metrics import DepthRMSE, MeanAngularError, MeanIoU, OptimalDatasetF, delta_m, relative_gain

directions = {
    "semseg": MeanIoU(40).higher_is_better,
    "depth": DepthRMSE().higher_is_better,
    "normals": MeanAngularError().higher_is_better,
    "edges": OptimalDatasetF().higher_is_better,
}
single_task = {"semseg": 40.0, "depth": 0.5, "normals": 20.0, "edges": 80.0}


def test_hand_computed():
    results = {"semseg": 44.0, "depth": 0.6, "normals": 19.0, "edges": 80.0}
    assert relative_gain(results, single_task, directions) == pytest.approx(
        {"semseg": 10, "depth": -20, "normals": 5, "edges": 0}
    )
    assert delta_m(results, single_task, directions) == pytest.approx((10 - 20 + 5 + 0) / 4)


def test_single_task_against_itself_gains_nothing():
    assert delta_m(single_task, single_task, directions) == 0


@pytest.mark.parametrize("reference", [0.0, -1.0, math.nan, math.inf])
def test_a_reference_without_a_gain_is_an_error(reference):
    with pytest.raises(ValueError, match=r"single_task\['depth'\] is .*train a single-task model of 'depth'"):
        delta_m(single_task, {**single_task, "depth": reference}, directions)


def test_a_missing_reference_is_an_error():
    without = {task: value for task, value in single_task.items() if task != "normals"}
    with pytest.raises(ValueError, match="single_task has no reference for task 'normals': train a single-task model"):
        delta_m(single_task, without, directions)


def test_a_missing_or_diverged_result_is_an_error():
    without = {task: value for task, value in single_task.items() if task != "edges"}
    with pytest.raises(ValueError, match="results has no measure of task 'edges'"):
        delta_m(without, single_task, directions)
    with pytest.raises(ValueError, match=r"results\['edges'\] is nan"):
        delta_m({**single_task, "edges": math.nan}, single_task, directions)
    with pytest.raises(ValueError, match="results names no task"):
        delta_m({}, {}, {})


def test_a_missing_direction_is_an_error():
    with pytest.raises(ValueError, match=r"higher_is_better .*'edges'"):
        delta_m(single_task, single_task, {**directions, "edges": None})
