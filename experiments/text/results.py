"""From the finished rows of a seed to its results, as `experiments.runner.jsonl` writes them."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from dtme.metrics import delta_m
from dtme.report.report import ConflictReport
from experiments.runner.environment import hardware
from experiments.text.data.suite import TextSuite
from experiments.text.evaluation import average, averaged, how_averaged, score
from experiments.text.experiment import TextBench
from experiments.text.methods import method_of
from experiments.text.rows import FIRST, wall_clocks


def collect(
    bench: TextBench, suite: TextSuite, methods: Sequence[str], *, command: str, seconds: float
) -> dict[str, Any]:
    """All figures of one seed.

    Args:
        bench: Whose rows have been finished.
        suite: Its sentences.
        methods: The table's rows.
        command: What was typed.
        seconds: How long it took.
    """
    measures = {name: _measures(bench, name) for name in methods}
    single = {task: score(own) for task, own in measures["ST"].items()} if "ST" in measures else {}
    cost = bench.read_row("cost")
    clocks = wall_clocks(bench)
    rows = []
    for name in methods:
        scores = {task: score(own) for task, own in measures[name].items()}
        steps = bench.recipe.steps if name == "ST" else bench.read_row(name)["steps"]
        rows.append(
            {
                "method": name,
                "measures": measures[name],
                "metrics": scores,
                "mean": average(measures[name], suite.tasks),
                **_gain(scores, single, suite),
                "parameters_added": cost["added"][name],
                "parameters_added_percent": 100 * cost["added"][name] / cost["parameters"],
                "steps": steps,
                "step_cost": cost["step"][name],
                "inference_cost": cost["inference"][name],
                "wall_clock": _seconds(bench, name),
                "wall_clock_ratio": clocks.get(name, steps / bench.recipe.steps),
                "plan": _plan(bench, name),
            }
        )
    return {
        "suite": bench.suite,
        "command": command,
        "versions": {name: version(name) for name in ("dtme", "torch", "transformers")}
        | {"python": platform.python_version()},
        "hardware": hardware(),
        "settings": bench.settings(),
        "seed": bench.seed,
        "average": how_averaged(suite.tasks),
        "remarks": [*_beginning(bench), *suite.remarks],
        "tasks": [
            {"name": task.name, "metric": "/".join(measure.name for measure in task.measures), "higher_is_better": True}
            for task in suite.tasks
        ],
        "rows": rows,
        "seconds": seconds,
    }


def _beginning(bench: TextBench) -> list[str]:
    recipe = bench.recipe
    if not recipe.start_steps:
        return []
    return [
        f"Every row of a seed, single-task ones too, begins with one model trained for {recipe.start_steps:,} steps on all tasks "
        f"together, and goes on for {recipe.steps:,} steps' worth of sentences."
    ]


def _measures(bench: TextBench, name: str) -> dict[str, dict[str, float]]:
    if name == "ST":
        return {task.name: bench.read_row(f"ST {task.name}")["measures"][task.name] for task in bench.tasks}
    return bench.read_row(name)["measures"]


def _seconds(bench: TextBench, name: str) -> float:
    if name == "ST":
        return sum(bench.read_row(f"ST {task.name}")["seconds"] for task in bench.tasks)
    extra = bench.read_row(FIRST)["analysis_seconds"] if method_of(name).plan is not None else 0.0
    return bench.read_row(name)["seconds"] + extra


def _gain(scores: Mapping[str, float], single: Mapping[str, float], suite: TextSuite) -> dict[str, Any]:
    """Delta_m over the averaged tasks, or why there is none."""
    counted = [task.name for task in averaged(suite.tasks)]
    if not single:
        return {"delta_m": None, "no_delta_m": "no single-task rows were asked for"}
    useless = [task for task in counted if single[task] <= 0]
    if useless:
        return {
            "delta_m": None,
            "no_delta_m": f"the single-task score of {useless[0]} is {single[useless[0]]:.2f}, not above 0",
        }
    own = {task: scores[task] for task in counted}
    return {"delta_m": delta_m(own, {task: single[task] for task in counted}, dict.fromkeys(counted, True))}


def _plan(bench: TextBench, name: str) -> dict[str, Any] | None:
    """The blocks of the plan, by what is inserted."""
    method = method_of(name)
    if method.plan is None:
        return None
    plan = method.plan(ConflictReport.load(bench.out / "report.json"), bench.recipe, bench.seed)
    return {name: list(getattr(plan, name)) for name in ("modulate", "expand", "adapt", "copies")}
