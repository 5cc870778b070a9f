"""What multi-task training gained over single-task models."""

from __future__ import annotations

import math
from collections.abc import Mapping


def delta_m(
    results: Mapping[str, float], single_task: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> float:
    r"""Mean relative gain over single-task models, in per cent.

    $$ \Delta_m = \frac{100}{K} \sum_{i=1}^{K} s_i \frac{M_i - B_i}{B_i}, \qquad
       s_i = \begin{cases} 1 & \text{higher is better} \\ -1 & \text{lower is better} \end{cases} $$

    (Maninis et al., "Attentive single-tasking of multiple tasks", CVPR 2019.)

    Args:
        results: Per task, the measure $M_i$ of the multi-task model.
        single_task: Per task, the measure $B_i$ of a single-task model of the same architecture and schedule.
        higher_is_better: Per task, whether a higher measure is better, as a metric's `higher_is_better` says.

    Returns:
        The mean gain; positive where sharing helped.

    Raises:
        ValueError: As `relative_gain`.

    Example:
        >>> delta_m({"semseg": 44.0, "depth": 0.75}, {"semseg": 40.0, "depth": 0.5}, {"semseg": True, "depth": False})
        -20.0
    """
    gains = relative_gain(results, single_task, higher_is_better)
    return math.fsum(gains.values()) / len(gains)


def relative_gain(
    results: Mapping[str, float], single_task: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> dict[str, float]:
    """Gain of each task over its single-task model, in per cent; `delta_m` is their mean.

    Args:
        results: Per task, the measure of the multi-task model.
        single_task: Per task, the measure of a single-task model of the same architecture and schedule.
        higher_is_better: Per task, whether a higher measure is better.

    Returns:
        Per task, the gain; positive where sharing helped.

    Raises:
        ValueError: If there is no task, a task is in `results` or `single_task` only, has no direction, a measure is
            not finite, or a single-task measure is not positive. Nothing is put in the place of a missing reference.

    Example:
        >>> relative_gain({"depth": 0.75}, {"depth": 0.5}, {"depth": False})
        {'depth': -50.0}
    """
    if not results:
        raise ValueError("results names no task; pass the measure of at least one")
    if forgotten := [task for task in single_task if task not in results]:
        raise ValueError(
            f"results has no measure of task {forgotten[0]!r}, of which there is a single-task one: "
            "evaluate it, or leave it out of single_task too"
        )
    return {
        task: 100
        * _sign(higher_is_better, task)
        * (_result(results, task) - _reference(single_task, task))
        / _reference(single_task, task)
        for task in results
    }


def _sign(higher_is_better: Mapping[str, bool], task: str) -> int:
    if higher_is_better.get(task) is None:
        raise ValueError(f"higher_is_better does not say which way task {task!r} points: add True or False for it")
    return 1 if higher_is_better[task] else -1


def _result(results: Mapping[str, float], task: str) -> float:
    value = float(results[task])
    if not math.isfinite(value):
        raise ValueError(
            f"results[{task!r}] is {value}: the model diverged or no pixel was evaluated; train or evaluate it again"
        )
    return value


def _reference(single_task: Mapping[str, float], task: str) -> float:
    remedy = f"train a single-task model of {task!r} with the same architecture and schedule and pass its measure"
    if task not in single_task:
        raise ValueError(f"single_task has no reference for task {task!r}: {remedy}")
    value = float(single_task[task])
    if not math.isfinite(value) or value <= 0:
        # A gain relative to zero does not exist, and relative to a negative measure it would have the wrong sign.
        raise ValueError(
            f"single_task[{task!r}] is {value}, not finite and positive, so no gain relates to it: {remedy}"
        )
    return value
