"""The rows of one seed, each from where all begin to its figures, one file each.

Every row of a seed begins with the same weights and sees the same sentences in the same order. Those that insert branch off
plain multi-task training at the step where conflicts are measured, with its weights, its optimiser's state and its place in the
schedule; those that put another model in the model's place do so at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from dtme._files import written_whole
from dtme.bench.hashing import hash_of
from dtme.bench.jobs import Job, Report
from dtme.bench.text.analysis import analyse
from dtme.bench.text.batches import drawn
from dtme.bench.text.beginnings import beginning, plateau, train_on
from dtme.bench.text.cost import prices
from dtme.bench.text.evaluation import evaluate
from dtme.bench.text.experiment import TextBench, figures, is_done, keep, path_of
from dtme.bench.text.methods import TextMethod, method_of
from dtme.bench.text.suite import TextSuite
from dtme.bench.text.tasks import TextTask
from dtme.bench.text.training import TextRun, add_group, begin, insert, train
from dtme.report import ConflictReport

FIRST = "MT, first steps"


def jobs_of(bench: TextBench, methods: Sequence[str], label: str = "") -> list[Job]:
    """The jobs of one seed; finished ones are left out.

    Args:
        bench: The seed.
        methods: Names of the rows.
        label: Put before the names of jobs, where several seeds run together.

    Raises:
        ValueError: A method is unknown.
    """
    wanted = [method_of(name) for name in methods]
    dearest = [method for method in wanted if method.as_dearest]
    jobs = [
        Job("start", begin_all, (bench,), after=("sentences",)),
        Job(FIRST, first_steps, (bench,), after=("start",)),
        Job("cost", price, (bench, tuple(methods)), after=(FIRST,), alone=True),
        *(
            Job(method.name, finish, (bench, method.name), after=("cost", FIRST) if method in dearest else (FIRST,))
            for method in wanted
            if method.name != "ST"
        ),
        *(
            Job(f"ST {task.name}", single_task, (bench, task), after=("start",))
            for task in bench.tasks
            if any(method.name == "ST" for method in wanted)
        ),
    ]
    done = {job.name for job in jobs if is_done(bench, job.name)}
    if "cost" in done and set(methods) - figures(bench, "cost")["step"].keys():
        done.discard("cost")
    priced = done.issuperset(("cost", FIRST))
    done -= {method.name for method in dearest if not priced or not lasts_as_it_should(bench, method)}
    missing = [job for job in jobs if job.name not in done]
    labelled = [
        replace(
            job,
            name=label + job.name,
            after=tuple("sentences" if name == "sentences" else label + name for name in job.after if name not in done),
        )
        for job in missing
    ]
    return [Job("sentences", read, (bench,)), *labelled] if labelled else []


def read(bench: TextBench, report: Report) -> None:
    """Read and tokenise the sentences, once."""
    bench.load(report)


def begin_all(bench: TextBench, report: Report) -> None:
    """Train what all rows begin with, where that is more than a pretrained trunk."""
    if bench.recipe.start_steps:
        plateau(bench, bench.load(), report)
    keep(bench, "start", {})


def start(bench: TextBench, suite: TextSuite, *, steps: int | None = None) -> TextRun:
    """A run at its first step, on all tasks."""
    return begin(beginning(bench, suite), suite, bench.recipe, seed=bench.seed, steps=steps)


def first_steps(bench: TextBench, report: Report) -> None:
    """Plain multi-task training up to the step of insertion, and the analysis there."""
    suite, recipe = bench.load(), bench.recipe
    path_of(bench, FIRST, "json").unlink(missing_ok=True)  # what it says is no longer there once this has begun
    run = start(bench, suite)
    train(run, recipe.expand_at, advance=lambda step, _: report(step, recipe.expand_at))
    with written_whole(bench.out / "start.pt") as temporary:
        torch.save(run.state(), temporary)
    seconds = 0.0
    if len(suite.tasks) > 1:
        began = time.perf_counter()
        conflicts = analyse(run.model, suite, recipe, seed=bench.seed)
        seconds = time.perf_counter() - began
        conflicts.save(bench.out / "report.json")
    if not run.step:
        train(run, min(10, recipe.steps))  # for the price of a step; this training is thrown away
    keep(bench, FIRST, {"analysis_seconds": seconds, "analysis_steps": seconds * run.step / run.seconds})


def run_of(bench: TextBench, suite: TextSuite, method: TextMethod) -> TextRun:
    """A multi-task row at the step of insertion, with what the method changes in place."""
    run = start(bench, suite, steps=steps_of(bench, method))
    if method.as_dearest:  # a schedule of its own, so that it has to begin at its beginning
        return run
    run.restore(torch.load(bench.out / "start.pt", weights_only=True, map_location=bench.device))
    if method.plan is not None:
        report = ConflictReport.load(bench.out / "report.json")
        insert(run, method.plan(report, bench.recipe, bench.seed), seed=hash_of(bench.seed, method.name))
    if method.change is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_of(bench.seed, method.name))
            run.model = method.change(run.model, suite.tasks, bench.recipe).to(bench.device)
        own: Any = run.model
        add_group(run.made, (p for _, p in own.added_parameters()), getattr(bench.recipe, method.rate))
    return run


def steps_of(bench: TextBench, method: TextMethod) -> int:
    """How long a row trains: as long as the others, or for as many steps as take the time of the dearest of them."""
    if not method.as_dearest:
        return bench.recipe.steps
    return round(max(wall_clocks(bench).values()) * bench.recipe.steps)


def lasts_as_it_should(bench: TextBench, method: TextMethod) -> bool:
    """Whether a row is finished, and with as many steps as it has to take now that costs may have been measured anew."""
    return is_done(bench, method.name) and figures(bench, method.name).get("steps") == steps_of(bench, method)


def wall_clocks(bench: TextBench) -> dict[str, float]:
    """The time of each priced row as a multiple of MT's, by the price of a step and with the analysis where it needs one."""
    steps, before = bench.recipe.steps, bench.recipe.expand_at
    analysis = figures(bench, FIRST)["analysis_steps"]
    clocks = {}
    for name, per_step in figures(bench, "cost")["step"].items():
        method = method_of(name)
        extra = analysis if method.plan is not None else 0.0
        if not method.as_dearest and name != "ST":
            clocks[name] = (before + extra + (steps - before) * per_step) / steps
    return clocks


def price(bench: TextBench, methods: Sequence[str], report: Report) -> None:
    """What a step and a pass of each method cost against MT's, and how many parameters it adds; what is priced stays so."""
    suite = bench.load()
    known = figures(bench, "cost") if is_done(bench, "cost") else {"step": {}, "inference": {}, "added": {}}
    methods = [name for name in methods if name not in known["step"]]
    priced = [method_of(name) for name in methods if name not in ("ST", "MT") and not method_of(name).as_dearest]
    found = prices(lambda: run_of(bench, suite, method_of("MT")), _makers(bench, suite, priced), advance=report)
    same = [name for name in methods if name == "MT" or method_of(name).as_dearest]
    step, passes, added = ({**known[of], **getattr(found, of)} for of in ("step", "inference", "added"))
    for name in same:
        step[name], passes[name], added[name] = 1.0, 1.0, 0
    if "ST" in methods:
        step["ST"], passes["ST"], added["ST"] = 1.0, 1.0, 0  # the same sentences, each through one trunk
    keep(bench, "cost", {"step": step, "inference": passes, "added": added, "parameters": found.parameters})


def _makers(bench: TextBench, suite: TextSuite, methods: Sequence[TextMethod]) -> dict[str, Callable[[], TextRun]]:
    return {method.name: lambda method=method: run_of(bench, suite, method) for method in methods}


def finish(bench: TextBench, name: str, report: Report) -> None:
    """A multi-task row from the step of insertion to its figures."""
    if lasts_as_it_should(bench, method_of(name)):  # new prices have left its length as it was
        return
    suite = bench.load()
    _to_the_end(bench, name, lambda: run_of(bench, suite, method_of(name)), report)


def single_task(bench: TextBench, task: TextTask, report: Report) -> None:
    """The single-task row of one task: as many of its sentences as the rows of all tasks see of it, and the same ones."""
    suite = bench.load()
    sentences = drawn(suite, bench.recipe.drawing(bench.seed))[suite.tasks.index(task)]
    steps = max(2, round(sentences / bench.recipe.batch))
    recipe = replace(bench.recipe, learning_rate=bench.single_rates.get(task.name, bench.recipe.learning_rate))
    model = beginning(bench, suite, task)
    _to_the_end(
        bench, f"ST {task.name}", lambda: begin(model, suite.only(task), recipe, seed=bench.seed, steps=steps), report
    )


def _to_the_end(bench: TextBench, name: str, make: Callable[[], TextRun], report: Report) -> None:
    """Train to the end and measure."""
    run = make()
    train_on(bench, name, run, report)
    found = evaluate(run.model, run.suite, precision=bench.recipe.precision)
    keep(bench, name, {"measures": found, "curves": run.curves, "seconds": run.seconds, "steps": run.drawing.steps})
    path_of(bench, name, "pt").unlink(missing_ok=True)
