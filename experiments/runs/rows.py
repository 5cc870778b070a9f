"""The rows of a table: what each method trains, from where all begin to the figures, one file each.

Every row of a seed begins with the same weights, sees the same batches in the same order and, unless it says otherwise,
runs for the same number of steps. The rows that insert branch off the plain multi-task run at the step where conflicts
are measured, with its weights, its optimiser's state and its place in the schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dtme._files import written_whole
from dtme.attach.apply import apply
from dtme.plan.plan import Plan
from experiments.dense.branch_point import BranchPoint, conflict_of, plain_run, reach
from experiments.dense.experiment import Bench
from experiments.dense.methods import Method
from experiments.dense.model import build
from experiments.dense.multi_task_model import MultiTaskModel
from experiments.dense.pretraining import start_of
from experiments.dense.recipe import Recipe
from experiments.dense.suite import Split, Suite, Task
from experiments.dense.training import (
    add_inserts,
    add_own,
    begin,
    compiled,
    evaluate,
    freeze_trunk,
    measure,
    settle_statistics,
)
from experiments.methods.gradient_cosines import CosineLog
from experiments.methods.placements import grown
from experiments.runner.jobs import Report
from experiments.runner.processes import by_first
from experiments.runner.resume import read_state
from experiments.runner.seeds import hash_of
from experiments.runs.by_name import every_method, method_of
from experiments.runs.total_cost import steps_of
from experiments.training.run import Run
from experiments.training.unfinished import forget, train_to_end


def start_of_its_own(method: Method) -> str:
    """The job that trains what the methods of one other shape begin with, named after the first of them."""
    first = next(other for other in every_method() if other.shape is method.shape)
    return f"start of {first.name}"


def begin_wide(bench: Bench, name: str, report: Report) -> None:
    """What a method of another shape begins with."""
    start_of(_wide(bench, method_of(name)), report)
    bench.write_row(start_of_its_own(method_of(name)), {})


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


def run_of(bench: Bench, suite: Suite, method: Method, steps: int | None = None) -> Run:
    """A multi-task row at the step of insertion, with what the method changes in place.

    Args:
        bench: The seed.
        suite: Its data.
        method: Of the row.
        steps: Length of its schedule, if not the recipe's.
    """
    recipe = recipe_of(bench, method)
    suite = suite if method.weights is None else suite.weighted(weights_of(bench, method.weights))
    if method.shape is not None:  # another shape cannot branch off, and begins with a start of its own
        wide = _wide(bench, method)
        model = build(suite.tasks, wide.recipe, bench.seed, start_of(wide, lambda done, total: None))
        return begin(model, suite.tasks, suite.train, recipe, seed=bench.seed, steps=steps)
    run, grows = plain_run(replace(bench, recipe=recipe), suite, steps=steps), method.branch.of != "MT"
    run.restore(read_state((BranchPoint() if grows else method.branch).start(bench), "cpu"))
    for group, rate in zip(run.optimizer.param_groups, (1.0, 1.0, recipe.head_rate, recipe.head_rate), strict=True):
        group["rate"] = rate  # what was restored holds the table's
    model: Any = run.model
    if recipe.frozen_trunk:
        freeze_trunk(run)
    plan = plan_of_method(bench, method.name)
    if plan is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_of(bench.seed, method.name))
            apply(model, plan)
        add_inserts(run, recipe, run.step)
    if grows:
        other = run_of(bench, suite, method_of(method.branch.of))
        other.restore(read_state(method.branch.start(bench), "cpu"))
        run.take_over(other)
    if method.change is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_of(bench.seed, method.name))
            changed: Any = method.change(model, bench, suite)
        own = [parameter for _, parameter in changed.added_parameters()]
        rate = 1.0 if method.rate is None else getattr(recipe, method.rate)
        add_own(run, own, rate, recipe.weight_decay if method.rate is None else 0.0)
        run.model = changed
    if method.balance is not None:
        run.balancing = method.balance(suite, recipe, bench.seed)
        add_own(run, list(run.balancing.parameters()), recipe.head_rate, 0.0)
    return run


def finish(bench: Bench, name: str, report: Report) -> None:
    """A multi-task row from the step of insertion to its figures."""
    suite, method = bench.load(), method_of(name)
    _finish(bench, name, suite, run_of(bench, suite, method, steps_of(bench, method)), report)


def single_task(bench: Bench, task: str, report: Report) -> None:
    """The single-task row of one task."""
    suite, recipe = bench.load(), bench.recipe
    own = tuple(t for t in suite.tasks if t.name == task)
    model = build(own, recipe, bench.seed, start_of(bench, report))
    _finish(bench, f"ST {task}", suite, begin(model, own, suite.train, recipe, seed=bench.seed), report)


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
    path = bench.path_of(name, "safetensors")
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{path} is missing or damaged ({error}). Remove {path.with_suffix('.json').name} beside it, and the same command "
            "trains that row once more."
        ) from error
    return model.to(suite.train.device)


def _look(run: Run, suite: Suite, tasks: Sequence[Task]) -> None:
    """Measure losses and metrics on as many images of the training split as of the other, and on that one."""
    assert isinstance(suite.train, Split)
    settle_statistics(run.model, suite.train)  # training itself reads those of its batches
    train = suite.train.some(slice(len(suite.test)))
    for split, images in (("train", train), ("test", suite.test)):
        run.looks.append({"step": run.step, "split": split, **measure(run.model, images, tasks)})


def _save(model: nn.Module, path: Path) -> None:
    with written_whole(path) as temporary:
        save_file(model.state_dict(), temporary)


def _finish(bench: Bench, name: str, suite: Suite, run: Run, report: Report) -> None:
    """Train to the end and measure."""
    tasks, share = run.workload.tasks, run.workload.steps / bench.recipe.steps
    looks_at = [round(step * share) for step in bench.recipe.measured_at]
    with compiled(run.model, bench.recipe):
        train_to_end(bench, name, run, report, lambda run: _look(run, suite, tasks), looks_at)
    if run.looks and run.looks[-1]["step"] == run.step:
        metrics = run.looks[-1]["metrics"]
    else:
        if bench.recipe.settles_statistics:
            settle_statistics(run.model, suite.train)
        metrics = evaluate(run.model, suite.test, tasks)
    by_first(lambda: _save(run.model, bench.path_of(name, "safetensors")))
    found: dict[str, Any] = {
        "metrics": metrics,
        "curves": run.curves,
        "seconds": run.seconds,
        "steps": run.workload.steps,
    }
    if suite.train.skipped or suite.test.skipped:
        found["skipped"] = {"train": len(suite.train.skipped), "test": len(suite.test.skipped)}
    if run.looks:
        found["looks"] = run.looks
    found["weights"] = {task.name: task.weight for task in tasks}
    if isinstance(run.balancing, CosineLog):
        found["cosines"] = [[round(cosine, 3) for cosine in look] for look in run.balancing.cosines.tolist()]
    if len(tasks) > 1 and isinstance(run.model, MultiTaskModel):
        found["conflict"] = conflict_of(run.model, bench, suite)
    bench.write_row(name, found)
    forget(bench, name)
