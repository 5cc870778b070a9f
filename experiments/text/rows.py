"""The rows of one seed, each from where all begin to its figures, one file each.

Every row of a seed begins with the same weights and sees the same sentences in the same order. Those that insert branch off
plain multi-task training at the step where conflicts are measured, with its weights, its optimiser's state and its place in the
schedule; those that put another model in the model's place do so at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from dtme.report.report import ConflictReport
from experiments.runner.jobs import Job, Report, leave_out
from experiments.runner.resume import is_whole, read_state, write_state
from experiments.runner.seeds import hash_of
from experiments.text.analysis import analyse
from experiments.text.data.batches import drawn
from experiments.text.data.suite import TextSuite
from experiments.text.data.tasks import TextTask
from experiments.text.evaluation import evaluate
from experiments.text.experiment import TextBench
from experiments.text.methods import TextMethod, method_of
from experiments.text.pretraining import beginning, plateau
from experiments.text.training import begin, insert
from experiments.training.optimizer import add_group
from experiments.training.run import Run, train
from experiments.training.step_cost import TURNS, compare, count_parameters
from experiments.training.unfinished import forget, train_to_end

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
    done = {job.name for job in jobs if bench.is_done(job.name)}
    awaited = {name for job in jobs if job.name not in done for name in job.after}
    if FIRST in done & awaited and not is_whole(bench.out / "start.pt"):
        done.discard(FIRST)
    if "cost" in done and set(methods) - bench.read_row("cost")["step"].keys():
        done.discard("cost")
    priced = done.issuperset(("cost", FIRST))
    done -= {method.name for method in dearest if not priced or not lasts_as_it_should(bench, method)}
    return leave_out(done, jobs, [Job("sentences", read, (bench,))], label)


def read(bench: TextBench, report: Report) -> None:
    """Read and tokenise the sentences, once."""
    bench.load(report)


def begin_all(bench: TextBench, report: Report) -> None:
    """Train what all rows begin with, where that is more than a pretrained trunk."""
    if bench.recipe.start_steps:
        plateau(bench, bench.load(), report)
    bench.write_row("start", {})


def start(bench: TextBench, suite: TextSuite, *, steps: int | None = None) -> Run:
    """A run at its first step, on all tasks."""
    return begin(beginning(bench, suite), suite, bench.recipe, seed=bench.seed, steps=steps)


def first_steps(bench: TextBench, report: Report) -> None:
    """Plain multi-task training up to the step of insertion, and the analysis there."""
    suite, recipe = bench.load(), bench.recipe
    bench.path_of(FIRST, "json").unlink(missing_ok=True)  # what it says is no longer there once this has begun
    run = start(bench, suite)
    train(run, recipe.expand_at, advance=lambda step, _: report(step, recipe.expand_at))
    write_state(bench.out / "start.pt", run.state())
    seconds = 0.0
    if len(suite.tasks) > 1:
        began = time.perf_counter()
        conflicts = analyse(run.model, suite, recipe, seed=bench.seed)
        seconds = time.perf_counter() - began
        conflicts.save(bench.out / "report.json")
    if not run.step:
        train(run, min(10, recipe.steps))  # for the price of a step; this training is thrown away
    bench.write_row(FIRST, {"analysis_seconds": seconds, "analysis_steps": seconds * run.step / run.seconds})


def run_of(bench: TextBench, suite: TextSuite, method: TextMethod) -> Run:
    """A multi-task row at the step of insertion, with what the method changes in place."""
    run = start(bench, suite, steps=steps_of(bench, method))
    if method.as_dearest:  # a schedule of its own, so that it has to begin at its beginning
        return run
    run.restore(read_state(bench.out / "start.pt", bench.device))
    if method.plan is not None:
        report = ConflictReport.load(bench.out / "report.json")
        insert(run, method.plan(report, bench.recipe, bench.seed), seed=hash_of(bench.seed, method.name))
    if method.change is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_of(bench.seed, method.name))
            run.model = method.change(run.model, suite.tasks, bench.recipe).to(bench.device)
        own: Any = run.model
        add_group(run.optimizer, (p for _, p in own.added_parameters()), getattr(bench.recipe, method.rate))
    return run


def steps_of(bench: TextBench, method: TextMethod) -> int:
    """How long a row trains: as long as the others, or for as many steps as take the time of the dearest of them."""
    if not method.as_dearest:
        return bench.recipe.steps
    return round(max(wall_clocks(bench).values()) * bench.recipe.steps)


def lasts_as_it_should(bench: TextBench, method: TextMethod) -> bool:
    """Whether a row is finished, and with as many steps as it has to take now that costs may have been measured anew."""
    return bench.is_done(method.name) and bench.read_row(method.name).get("steps") == steps_of(bench, method)


def wall_clocks(bench: TextBench) -> dict[str, float]:
    """The time of each priced row as a multiple of MT's, by the price of a step and with the analysis where it needs one."""
    steps, before = bench.recipe.steps, bench.recipe.expand_at
    analysis = bench.read_row(FIRST)["analysis_steps"]
    clocks = {}
    for name, per_step in bench.read_row("cost")["step"].items():
        method = method_of(name)
        extra = analysis if method.plan is not None else 0.0
        if not method.as_dearest and name != "ST":
            clocks[name] = (before + extra + (steps - before) * per_step) / steps
    return clocks


def price(bench: TextBench, methods: Sequence[str], report: Report) -> None:
    """What a step and a pass of each method cost against MT's, and how many parameters it adds; what is priced stays so."""
    suite = bench.load()
    known = bench.read_row("cost") if bench.is_done("cost") else {"step": {}, "inference": {}, "added": {}}
    step, passes, added = ({**known[of]} for of in ("step", "inference", "added"))
    plain = run_of(bench, suite, method_of("MT"))
    batches, parameters = list(plain.workload.batches(plain.step, plain.step + TURNS + 1)), count_parameters([plain])
    unpriced = [method_of(name) for name in methods if name not in step]
    for done, method in enumerate(unpriced):
        step[method.name], passes[method.name], added[method.name] = 1.0, 1.0, 0
        # Single-task rows see the same sentences, each through one trunk; some others train as MT does.
        if method.name not in ("ST", "MT") and not method.as_dearest:
            own = [run_of(bench, suite, method)]
            step[method.name], passes[method.name] = compare(plain, own, batches)
            added[method.name] = count_parameters(own) - parameters
        report(done + 1, len(unpriced))
    bench.write_row("cost", {"step": step, "inference": passes, "added": added, "parameters": parameters})


def finish(bench: TextBench, name: str, report: Report) -> None:
    """A multi-task row from the step of insertion to its figures."""
    if lasts_as_it_should(bench, method_of(name)):  # new prices have left its length as it was
        return
    suite = bench.load()
    _finish(bench, name, run_of(bench, suite, method_of(name)), report)


def single_task(bench: TextBench, task: TextTask, report: Report) -> None:
    """The single-task row of one task: as many of its sentences as the rows of all tasks see of it, and the same ones."""
    suite = bench.load()
    sentences = drawn(suite, bench.recipe.drawing(bench.seed))[suite.tasks.index(task)]
    steps = max(2, round(sentences / bench.recipe.batch))
    recipe = replace(bench.recipe, learning_rate=bench.single_rates.get(task.name, bench.recipe.learning_rate))
    run = begin(beginning(bench, suite, task), suite.only(task), recipe, seed=bench.seed, steps=steps)
    _finish(bench, f"ST {task.name}", run, report)


def _finish(bench: TextBench, name: str, run: Run, report: Report) -> None:
    """Train to the end and measure."""
    train_to_end(bench, name, run, report)
    found = evaluate(run.model, run.workload.suite, precision=bench.recipe.precision)
    bench.write_row(
        name, {"measures": found, "curves": run.curves, "seconds": run.seconds, "steps": run.workload.steps}
    )
    forget(bench, name)
