"""Plain multi-task training at its best, and what is held against it too, before anything is compared.

Learning rates are tried first, with the recipe's sampler, then samplers at the best learning rate, then the rates of what
methods insert, at both. The seed of tuning is that of no row. MT's own mean development score decides what all rows share,
so that the choice favours MT over every other row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from dtme.bench.jobs import Job
from dtme.bench.text.evaluation import average, score
from dtme.bench.text.experiment import TextBench, figures, is_done
from dtme.bench.text.recipe import TextRecipe
from dtme.bench.text.rows import FIRST, begin_all, finish, first_steps, read, single_task
from dtme.bench.text.samplers import Sampler

SEED = -1
RATES = (0.5, 1.0, 2.0, 4.0)
"""Learning rates that are tried, as multiples of the recipe's."""
INSERT_RATES = (0.3, 1.0, 3.0)
"""Rates of what methods insert that are tried, as multiples of the recipe's."""
INSERTS = {"insert_rate": "TM+TE", "low_rank_rate": "Adapt"}
"""Which row decides which rate of the recipe."""

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
    """

    recipe: TextRecipe
    single_rates: Mapping[str, float]
    scores: Mapping[str, float]

    def remark(self) -> str:
        """The choice in words, with what it was chosen from."""
        recipe = self.recipe
        tried = ", ".join(f"{name}: {value:.2f}" for name, value in self.scores.items())
        single = ", ".join(f"{task} {rate:g}" for task, rate in self.single_rates.items())
        return (
            f"Chosen at seed {SEED}: learning rate {recipe.learning_rate:g}, sampler {recipe.sampler!r}, insert rate "
            f"{recipe.insert_rate:g}, low-rank rate {recipe.low_rank_rate:g}"
            + (f" (tried: {tried})" if tried else "")
            + (f"; single-task learning rates, each the best of its own row: {single}." if single else ".")
        )


def tune(bench: TextBench, run_jobs: RunJobs, what: Collection[Tunable] = ("MT",)) -> Tuned:
    """Find the best learning rate, then the best sampler, of MT; learning rates of ST rows; rates of what is inserted.

    Args:
        bench: Its recipe says where to begin; results go below its folder, and are used again.
        run_jobs: Runs jobs.
        what: What to tune; the rest stays as the recipe has it.
    """
    recipe, single, scores = bench.recipe, {}, {}
    by_rate = {f * recipe.learning_rate: _tried(bench, learning_rate=f * recipe.learning_rate) for f in RATES}
    of_several = [job for one in by_rate.values() for job in _rows(one, ["MT"])] if "MT" in what else []
    of_one = [job for one in by_rate.values() for job in _single(one)] if "ST" in what else []
    run_jobs(_with_data(bench, of_several + of_one))
    if "ST" in what:
        single = {t.name: max(by_rate, key=lambda rate, t=t: _own_score(by_rate[rate], t.name)) for t in bench.tasks}
    if "MT" in what:
        of_rates = {rate: _mean(one, "MT") for rate, one in by_rate.items()}
        recipe = replace(recipe, learning_rate=max(of_rates, key=of_rates.__getitem__))
        of_samplers = _samplers(replace(bench, recipe=recipe), run_jobs)
        scores = {f"{rate:g}": value for rate, value in of_rates.items()}
        scores |= {sampler: value for sampler, value in of_samplers.items() if sampler != recipe.sampler}
        recipe = replace(recipe, sampler=max(of_samplers, key=of_samplers.__getitem__))
    if "inserts" in what:
        recipe, of_inserts = _inserts(replace(bench, recipe=recipe), run_jobs)
        scores |= of_inserts
    return Tuned(recipe, single, scores)


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
        recipe = replace(recipe, **{rate: max(of_rates, key=of_rates.__getitem__)})
    return recipe, scores


def _tried(bench: TextBench, **numbers: Any) -> TextBench:
    """A bench of tuning in a folder of its own, the same for the same numbers, so that what was tried is not tried again."""
    recipe = replace(bench.recipe, **numbers)
    name = f"{recipe.learning_rate:g}-{recipe.sampler.replace(' ', '-')}"
    if any(getattr(recipe, rate) != getattr(bench.recipe, rate) for rate in INSERTS):
        name += f"-inserts-{recipe.insert_rate:g}-{recipe.low_rank_rate:g}"
    return replace(bench, recipe=recipe, seed=SEED, out=bench.out / name, single_rates={})


def _rows(bench: TextBench, names: Sequence[str]) -> list[Job]:
    label = f"tune {bench.out.name.replace('-', ' ')}: "
    missing = [name for name in names if not is_done(bench, name)]
    if not missing:
        return []
    begun = is_done(bench, FIRST)
    jobs = [Job(label + name, finish, (bench, name), ("sentences" if begun else label + FIRST,)) for name in missing]
    start = _start(bench)
    return jobs if begun else [start, Job(label + FIRST, first_steps, (bench,), (start.name,)), *jobs]


def _single(bench: TextBench) -> list[Job]:
    label, start = f"tune {bench.recipe.learning_rate:g}: ST ", _start(bench)
    missing = [task for task in bench.tasks if not is_done(bench, f"ST {task.name}")]
    jobs = [Job(label + task.name, single_task, (bench, task), (start.name,)) for task in missing]
    return [start, *jobs] if jobs else []


def _start(bench: TextBench) -> Job:
    return Job(f"tune {bench.out.name.replace('-', ' ')}: start", begin_all, (bench,), ("sentences",))


def _with_data(bench: TextBench, jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each once, behind the one that reads what all of them are about."""
    once = {job.name: job for job in jobs}.values()
    return [Job("sentences", read, (bench,)), *once] if jobs else []


def _mean(bench: TextBench, row: str) -> float:
    return average(figures(bench, row)["measures"], bench.tasks)


def _own_score(bench: TextBench, task: str) -> float:
    return score(figures(bench, f"ST {task}")["measures"][task])
