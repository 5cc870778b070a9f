"""What a row costs from first to last, in steps of plain training: the steps before it branches off, the analysis, its own."""

from __future__ import annotations

from typing import Literal

from dtme.bench.branch_point import price_of_analysis
from dtme.bench.catalogue import method_of
from dtme.bench.experiment import Bench, figures
from dtme.bench.methods import Method

Currency = Literal["time", "FLOPs"]
OF_A_STEP = {"time": "step", "FLOPs": "step_flops"}
"""The figure of a method's cost that is the price of a step of it, as a multiple of plain training's."""


def counting(method: str) -> str:
    """Under which name the steps are priced in which a method looks at all tasks' gradients before it changes the model."""
    return f"{method}, counting"


def paid(bench: Bench, method: Method, steps: int, currency: Currency) -> float:
    """How many steps of plain training cost as much as a row up to its step `steps`.

    Steps before a plan is applied cost what those of the row it branches off do, and that row's analysis is paid as well.
    """
    prices, recipe = figures(bench, "cost")["costs"], bench.recipe
    before = 0 if method.name == "ST" or method.shape is not None else method.branch.step(recipe)
    first = float(before) if method.branch.of == "MT" else paid(bench, method_of(method.branch.of), before, currency)
    looking = 0.0
    if method.counted:
        looking = method.counted * recipe.steps * prices[counting(method.name)][OF_A_STEP[currency]]
    own = (steps - before) * prices[method.name][OF_A_STEP[currency]]
    return first + looking + analysis_paid(bench, method, currency) + own


def analysis_paid(bench: Bench, method: Method, currency: Currency) -> float:
    """How many steps of plain training cost as much as the analysis that a method's plan or weights come from."""
    if not method.analysed:
        return 0.0
    if currency == "time":
        return price_of_analysis(bench, method.branch)[1]
    return method.branch.batches(bench.recipe) * figures(bench, "cost")["analysis_of_a_batch"]


def steps_of(bench: Bench, method: Method) -> int:
    """How long a method trains: as long as the others, so many times longer, or as long as another method's price allows."""
    recipe = bench.recipe
    if method.lasts is None:
        return round(recipe.steps * method.longer)
    other, currency = method.lasts
    return round(paid(bench, method_of(other), recipe.steps, currency) - analysis_paid(bench, method, currency))
