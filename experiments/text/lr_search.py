"""Plain multi-task training at its best, and what is held against it too, before anything is compared.

Learning rates are tried first, with the recipe's sampler, then samplers at the best learning rate, then the rates of what
methods insert, at both. The seed of tuning is that of no row. MT's own mean development score decides what all rows share,
so that the choice favours MT over every other row. A trial that diverges counts as the worst, and the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from experiments.runner.jobs import Job, Report
from experiments.text.data.samplers import Sampler
from experiments.text.evaluation import average, score
from experiments.text.experiment import TextBench
from experiments.text.recipe import TextRecipe
from experiments.text.rows import FIRST, begin_all, finish, first_steps, read, single_task
from experiments.training.divergence import DivergedError
from experiments.training.unfinished import forget

SEED = -1
RATES = (0.5, 1.0, 2.0, 4.0)
"""Learning rates that are tried, as multiples of the recipe's."""
INSERT_RATES = (0.3, 1.0, 3.0)
"""Rates of what methods insert that are tried, as multiples of the recipe's."""
INSERTS = {"insert_rate": "TM+TE", "low_rank_rate": "Adapt", "copies_rate": "own last block"}
"""Which row decides which rate of the recipe."""

Setting = TypeVar("Setting")
RunJobs = Callable[[Sequence[Job]], None]
Tunable = Literal["MT", "ST", "inserts"]
"""Learning rate and sampler of all rows of several tasks; learning rates of single-task rows; rates of what is inserted."""


@dataclass(frozen=True)
class Tuned:
    """What was found.

    Attributes:
        recipe: Of every row: learning rate and sampler as MT likes them, the rates of inserts as their rows do.
        single_rates: By task, the learning rate of its single-task row, where it was tuned.
        scores: By what was tried, the mean score it had.
        diverged: What was tried and has no score, since training diverged.
    """

    recipe: TextRecipe
    single_rates: Mapping[str, float]
    scores: Mapping[str, float]
    diverged: tuple[str, ...] = ()

    def remark(self) -> str:
        """The choice in words, with what it was chosen from."""
        recipe = self.recipe
        tried = ", ".join(f"{name}: {value:.2f}" for name, value in self.scores.items())
        single = ", ".join(f"{task} {rate:g}" for task, rate in self.single_rates.items())
        return (
            f"Chosen at seed {SEED}: learning rate {recipe.learning_rate:g}, sampler {recipe.sampler!r}, insert rate "
            f"{recipe.insert_rate:g}, low-rank rate {recipe.low_rank_rate:g}, copies' rate {recipe.copies_rate:g}"
            + (f" (tried: {tried})" if tried else "")
            + (f"; single-task learning rates, each the best of its own row: {single}." if single else ".")
            + (f" Diverged, and counted as the worst: {', '.join(self.diverged)}." if self.diverged else "")
        )


def tune(bench: TextBench, run_jobs: RunJobs, what: Collection[Tunable] = ("MT",)) -> Tuned:
    """Find the best learning rate, then the best sampler, of MT; learning rates of ST rows; rates of what is inserted.

    Args:
        bench: Its recipe says where to begin; results go below its folder, and are used again.
        run_jobs: Runs jobs.
        what: What to tune; the rest stays as the recipe has it.

    Raises:
        DivergedError: Every trial of something did.
    """
    recipe, single, scores = bench.recipe, {}, {}
    of_tasks: dict[str, dict[float, float]] = {}
    by_rate = {f * recipe.learning_rate: _tried(bench, learning_rate=f * recipe.learning_rate) for f in RATES}
    of_several = [job for one in by_rate.values() for job in _rows(one, ["MT"])] if "MT" in what else []
    of_one = [job for one in by_rate.values() for job in _single(one)] if "ST" in what else []
    run_jobs(_with_data(bench, of_several + of_one))
    if "ST" in what:
        of_tasks = {
            f"ST {task.name}": {rate: _own_score(one, task.name) for rate, one in by_rate.items()}
            for task in bench.tasks
        }
        single = {row.removeprefix("ST "): best(row, of_rates) for row, of_rates in of_tasks.items()}
    if "MT" in what:
        of_rates = {rate: _mean(one, "MT") for rate, one in by_rate.items()}
        recipe = replace(recipe, learning_rate=best("MT", of_rates))
        of_samplers = _samplers(replace(bench, recipe=recipe), run_jobs)
        scores = {f"{rate:g}": value for rate, value in of_rates.items()}
        scores |= {sampler: value for sampler, value in of_samplers.items() if sampler != recipe.sampler}
        recipe = replace(recipe, sampler=best("MT", of_samplers))
    if "inserts" in what:
        recipe, of_inserts = _inserts(replace(bench, recipe=recipe), run_jobs)
        scores |= of_inserts
    trials = scores | {f"{row} at {rate:g}": value for row, of in of_tasks.items() for rate, value in of.items()}
    diverged = tuple(name for name, value in trials.items() if value == -math.inf)
    return Tuned(recipe, single, {name: value for name, value in scores.items() if name not in diverged}, diverged)


def best(row: str, scores: Mapping[Setting, float]) -> Setting:
    """The setting that served a row best.

    Args:
        row: Its name, for the message.
        scores: By setting; minus infinity where training diverged.

    Raises:
        DivergedError: It did with every setting.

    Example:
        >>> best("MT", {1e-4: 61.5, 2e-4: 62.0, 4e-4: -math.inf})
        0.0002
    """
    chosen = max(scores, key=scores.__getitem__)
    if scores[chosen] == -math.inf:
        tried = ", ".join(f"{own:g}" if isinstance(own, float) else str(own) for own in scores)
        raise DivergedError(
            f"tuned: {row} diverged with everything that was tried ({tried}). Give a lower --learning-rate."
        )
    return chosen


def _samplers(bench: TextBench, run_jobs: RunJobs) -> dict[Sampler, float]:
    """MT's score with each sampler."""
    tried = {sampler: _tried(bench, sampler=sampler) for sampler in get_args(Sampler)}
    run_jobs(_with_data(bench, [job for one in tried.values() for job in _rows(one, ["MT"])]))
    return {sampler: _mean(one, "MT") for sampler, one in tried.items()}


def _inserts(bench: TextBench, run_jobs: RunJobs) -> tuple[TextRecipe, dict[str, float]]:
    """The recipe with the best rate of each kind of insert, and the scores it was chosen by."""
    rates = {rate: getattr(bench.recipe, rate) for rate in INSERTS}
    tried = [_tried(bench, **{rate: f * value for rate, value in rates.items()}) for f in INSERT_RATES]
    run_jobs(_with_data(bench, [job for one in tried for job in _rows(one, list(INSERTS.values()))]))
    recipe, scores = bench.recipe, {}
    for rate, row in INSERTS.items():
        of_rates = {getattr(one.recipe, rate): _mean(one, row) for one in tried}
        scores |= {f"{row} at {value:g}": mean for value, mean in of_rates.items()}
        recipe = replace(recipe, **{rate: best(row, of_rates)})
    return recipe, scores


def _tried(bench: TextBench, **numbers: Any) -> TextBench:
    """A bench of tuning in a folder of its own, the same for the same numbers, so that what was tried is not tried again."""
    recipe = replace(bench.recipe, **numbers)
    name = f"{recipe.learning_rate:g}-{recipe.sampler.replace(' ', '-')}"
    if any(getattr(recipe, rate) != getattr(bench.recipe, rate) for rate in INSERTS):
        name += "-inserts-" + "-".join(f"{getattr(recipe, rate):g}" for rate in INSERTS)
    return replace(bench, recipe=recipe, seed=SEED, out=bench.out / name, single_rates={})


def _rows(bench: TextBench, names: Sequence[str]) -> list[Job]:
    label = f"tune {bench.out.name.replace('-', ' ')}: "
    missing = [name for name in names if not bench.is_done(name)]
    if not missing:
        return []
    begun = bench.is_done(FIRST)
    after = ("sentences" if begun else label + FIRST,)
    jobs = [Job(label + name, attempt, (finish, (bench, name), name, FIRST), after) for name in missing]
    start = _start(bench)
    first = Job(label + FIRST, attempt, (first_steps, (bench,), FIRST, "start"), (start.name,))
    return jobs if begun else [start, first, *jobs]


def _single(bench: TextBench) -> list[Job]:
    label, start = f"tune {bench.recipe.learning_rate:g}: ST ", _start(bench)
    missing = {f"ST {task.name}": task for task in bench.tasks if not bench.is_done(f"ST {task.name}")}
    jobs = [
        Job(label + task.name, attempt, (single_task, (bench, task), row, "start"), (start.name,))
        for row, task in missing.items()
    ]
    return [start, *jobs] if jobs else []


def _start(bench: TextBench) -> Job:
    label = f"tune {bench.out.name.replace('-', ' ')}: start"
    return Job(label, attempt, (begin_all, (bench,), "start", None), ("sentences",))


def attempt(work: Callable[..., None], arguments: tuple[Any, ...], row: str, begun: str | None, report: Report) -> None:
    """A job of tuning; where it diverges, that is what its row has found, since a rate too high is no reason to stop.

    Args:
        work: Called as `work(*arguments, report)`.
        arguments: The bench, and what else it takes.
        row: Whose figures it leaves.
        begun: The row that it goes on from: if that one has diverged, so has this.
        report: Told how much is done.
    """
    bench: TextBench = arguments[0]
    try:
        if begun is not None and "diverged" in (found := bench.read_row(begun)):
            raise DivergedError(found["diverged"])
        work(*arguments, report)
    except DivergedError as why:
        bench.write_row(row, {"diverged": str(why)})
        forget(bench, row)  # nothing goes on from there


def _with_data(bench: TextBench, jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each once, behind the one that reads what all of them are about."""
    once = {job.name: job for job in jobs}.values()
    return [Job("sentences", read, (bench,)), *once] if jobs else []


def _mean(bench: TextBench, row: str) -> float:
    found = bench.read_row(row)
    return -math.inf if "diverged" in found else average(found["measures"], bench.tasks)


def _own_score(bench: TextBench, task: str) -> float:
    found = bench.read_row(f"ST {task}")
    return -math.inf if "diverged" in found else score(found["measures"][task])
