"""The rows of a table: what each method trains, from where all begin to the figures, one file each.

Every row of a seed begins with the same weights, sees the same batches in the same order and, unless it says otherwise,
runs for the same number of steps. The rows that insert branch off the plain multi-task run at the step where conflicts
are measured, with its weights, its optimiser's state and its place in the schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dtme._files import written_whole
from dtme.apply import apply
from dtme.bench.beginnings import start_of, train_on
from dtme.bench.branch_point import BranchPoint, conflict_of, plain_run, reach
from dtme.bench.catalogue import every_method, method_of
from dtme.bench.cosines import CosineLog
from dtme.bench.experiment import Bench, keep, path_of
from dtme.bench.jobs import Report
from dtme.bench.methods import Method
from dtme.bench.model import MultiTaskViT, build, hash_of
from dtme.bench.placements import grown
from dtme.bench.price import steps_of
from dtme.bench.recipe import Recipe
from dtme.bench.suite import Suite
from dtme.bench.training import Run, add_inserts, add_own, evaluate, freeze_trunk, optimiser, settle_statistics
from dtme.plan import Plan


def start_of_its_own(method: Method) -> str:
    """The job that trains what the methods of one other shape begin with, named after the first of them."""
    first = next(other for other in every_method() if other.shape is method.shape)
    return f"start of {first.name}"


def begin_wide(bench: Bench, name: str, report: Report) -> None:
    """What a method of another shape begins with."""
    start_of(_wide(bench, method_of(name)), report)
    keep(bench, start_of_its_own(method_of(name)), {})


def _wide(bench: Bench, method: Method) -> Bench:
    assert method.shape is not None
    return replace(bench, recipe=method.shape(recipe_of(bench, method)))


def go_on_to(bench: Bench, point: BranchPoint, report: Report) -> None:
    """The row in whose training a branch point lies, up to there, and the analysis."""
    suite = bench.load()
    reach(bench, point, run_of(bench, suite, method_of(point.of)), suite, report)


def recipe_of(bench: Bench, method: Method) -> Recipe:
    """The recipe of a row: the table's, with what the method sets otherwise."""
    return replace(bench.recipe, **method.settings)


def weights_of(bench: Bench, weights: Mapping[str, Mapping[str, float]] | Literal["even"]) -> Mapping[str, float]:
    """The weights of the losses of a row that does not have its suite's."""
    if weights != "even":
        return weights[bench.suite]
    factors = BranchPoint().measured(bench).even_weights()
    return {task: weight * factors[task] for task, weight in bench.loss_weights.items()}


def run_of(bench: Bench, suite: Suite, method: Method) -> Run:
    """A multi-task row at the step of insertion, with what the method changes in place."""
    recipe = recipe_of(bench, method)
    suite = suite if method.weights is None else suite.weighted(weights_of(bench, method.weights))
    if method.shape is not None:  # another shape cannot branch off, and begins with a start of its own
        wide = _wide(bench, method)
        model = build(suite.tasks, wide.recipe, bench.seed, start_of(wide, lambda done, total: None))
        return Run(model, suite.tasks, optimiser(model, recipe))
    run, grows = plain_run(replace(bench, recipe=recipe), suite), method.branch.of != "MT"
    run.restore(torch.load((BranchPoint() if grows else method.branch).start(bench), weights_only=True))
    for group, rate in zip(run.made.param_groups, (1.0, 1.0, recipe.head_rate, recipe.head_rate), strict=True):
        group["rate"] = rate  # what was restored holds the table's
    model: Any = run.model
    if recipe.frozen_trunk:
        freeze_trunk(run.made, model)
    plan = plan_of_method(bench, method.name)
    if plan is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_of(bench.seed, method.name))
            apply(model, plan)
        add_inserts(run.made, model, recipe, run.step)
    if grows:
        other = run_of(bench, suite, method_of(method.branch.of))
        other.restore(torch.load(method.branch.start(bench), weights_only=True))
        run.take_over(other)
    if method.change is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_of(bench.seed, method.name))
            changed: Any = method.change(model, bench, suite)
        own = [parameter for _, parameter in changed.added_parameters()]
        rate = 1.0 if method.rate is None else getattr(recipe, method.rate)
        add_own(run.made, own, rate, recipe.weight_decay if method.rate is None else 0.0)
        run.model = changed
    if method.balance is not None:
        run.balancing = method.balance(suite, recipe, bench.seed)
        add_own(run.made, run.balancing.parameters(), recipe.head_rate, 0.0)
    return run


def finish(bench: Bench, name: str, report: Report) -> None:
    """A multi-task row from the step of insertion to its figures."""
    suite, method = bench.load(), method_of(name)
    run, recipe = run_of(bench, suite, method), recipe_of(bench, method)
    _to_the_end(bench, name, suite, run, recipe, steps_of(bench, method), report)


def single_task(bench: Bench, task: str, report: Report) -> None:
    """The single-task row of one task."""
    suite, recipe = bench.load(), bench.recipe
    own = tuple(t for t in suite.tasks if t.name == task)
    model = build(own, recipe, bench.seed, start_of(bench, report))
    _to_the_end(bench, f"ST {task}", suite, Run(model, own, optimiser(model, recipe)), recipe, recipe.steps, report)


def plan_of_method(bench: Bench, name: str) -> Plan | None:
    """The plan a method applies, from the report of the analysis; `None` for one that inserts nothing."""
    method = method_of(name)
    if method.plan is None:
        return None
    measured = method.branch.measured(bench)
    plan = method.plan(measured, recipe_of(bench, method), bench.seed)
    before = None if method.branch.of == "MT" else plan_of_method(bench, method.branch.of)
    return plan if before is None else grown(before, plan, measured)


def trained(bench: Bench, name: str) -> nn.Module:
    """The model of a finished row."""
    suite = bench.load()
    if name.startswith("ST "):
        own = tuple(task for task in suite.tasks if task.name == name.removeprefix("ST "))
        model: nn.Module = build(own, bench.recipe, bench.seed)
    else:
        model = run_of(bench, suite, method_of(name)).model
    model.load_state_dict(load_file(path_of(bench, name, "safetensors")))
    return model


def _to_the_end(bench: Bench, name: str, suite: Suite, run: Run, recipe: Recipe, steps: int, report: Report) -> None:
    train_on(bench, name, run, suite.train, recipe, bench.seed, steps, report)
    settle_statistics(run.model, suite.train)
    metrics = evaluate(run.model, suite.test, run.tasks)
    path = path_of(bench, name, "safetensors")
    with written_whole(path) as temporary:
        save_file(run.model.state_dict(), temporary)
    found: dict[str, Any] = {"metrics": metrics, "curves": run.curves, "seconds": run.seconds, "steps": steps}
    found["weights"] = {task.name: task.weight for task in run.tasks}
    if isinstance(run.balancing, CosineLog):
        found["cosines"] = [[round(cosine, 3) for cosine in look] for look in run.balancing.cosines.tolist()]
    if len(run.tasks) > 1 and isinstance(run.model, MultiTaskViT):
        found["conflict"] = conflict_of(run.model, bench, suite)
    keep(bench, name, found)
