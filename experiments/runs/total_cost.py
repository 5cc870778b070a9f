"""What a row costs from first to last, in steps of plain training: the steps before it branches off, the analysis, its own."""

from __future__ import annotations

from typing import Literal

from experiments.dense.branch_point import BranchPoint, price_of_analysis
from experiments.dense.experiment import Bench
from experiments.dense.methods import Method
from experiments.runs.by_name import method_of

Currency = Literal["time", "FLOPs"]
OF_A_STEP = {"time": "step", "FLOPs": "step_flops"}
"""The figure of a method's cost that is the price of a step of it, as a multiple of plain training's."""


def counting(method: str) -> str:
    """Under which name the steps are priced in which a method looks at all tasks' gradients before it changes the model."""
    return f"{method}, counting"


def paid(bench: Bench, method: Method, steps: int, currency: Currency) -> float:
    """How many steps of plain training cost as much as a row up to its step `steps`, all that leads to it included."""
    return _steps_paid(bench, method, steps, currency) + analysis_paid(bench, method, currency)


def _steps_paid(bench: Bench, method: Method, steps: int, currency: Currency) -> float:
    """Without analyses; the steps before a plan is applied cost what those of the row it branches off do."""
    prices, recipe = bench.read_row("cost")["costs"], bench.recipe
    before = 0 if method.name == "ST" or method.shape is not None else method.branch.step(recipe)
    plain = method.branch.of == "MT"
    first = float(before) if plain else _steps_paid(bench, method_of(method.branch.of), before, currency)
    looking = 0.0
    if method.counted:
        looking = method.counted * recipe.steps * prices[counting(method.name)][OF_A_STEP[currency]]
    return first + looking + (steps - before) * prices[method.name][OF_A_STEP[currency]]


def analyses_of(method: Method) -> set[BranchPoint]:
    """Where the analyses are made that a method's plan and weights come from, and those of the row it branches off."""
    found = set() if method.branch.of == "MT" else analyses_of(method_of(method.branch.of))
    if method.plan is not None:
        found.add(method.branch)
    if method.weights == "even":
        found.add(BranchPoint())
    return found


def analysis_paid(bench: Bench, method: Method, currency: Currency) -> float:
    """How many steps of plain training cost as much as the analyses of a row."""
    points = analyses_of(method)
    if currency == "time":
        return sum(price_of_analysis(bench, point)[1] for point in points)
    return sum(point.batches(bench.recipe) for point in points) * bench.read_row("cost")["analysis_of_a_batch"]


def steps_of(bench: Bench, method: Method) -> int:
    """How long a method trains: as long as the others, so many times longer, or as long as another method's price allows."""
    recipe = bench.recipe
    if method.lasts is None:
        return round(recipe.steps * method.longer)
    other, currency = method.lasts
    return round(paid(bench, method_of(other), recipe.steps, currency) - analysis_paid(bench, method, currency))
