"""Plain multi-task training at its best, and single-task training too, before anything is compared with them.

Learning rates are tried first, with the recipe's sampler, then samplers at the best learning rate. The seed of tuning is
that of no row. What decides is the mean development score of MT, so that the choice favours MT over every other row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from dtme.bench.jobs import Job
from dtme.bench.text.evaluation import average, score
from dtme.bench.text.experiment import TextBench, figures, is_done
from dtme.bench.text.rows import FIRST, finish, first_steps, read, single_task
from dtme.bench.text.samplers import Sampler

SEED = -1
RATES = (0.5, 1.0, 2.0, 4.0)
"""Learning rates that are tried, as multiples of the recipe's."""

RunJobs = Callable[[Sequence[Job]], None]


@dataclass(frozen=True)
class Tuned:
    """What was found.

    Attributes:
        learning_rate: Of the trunk, in all rows of several tasks.
        sampler: Of all rows.
        single_rates: By task, the learning rate of its single-task row.
        scores: By what was tried, the mean score of MT.
    """

    learning_rate: float
    sampler: Sampler
    single_rates: Mapping[str, float]
    scores: Mapping[str, float]

    def remark(self) -> str:
        """The choice in words, with what it was chosen from."""
        tried = ", ".join(f"{name}: {value:.2f}" for name, value in self.scores.items())
        single = ", ".join(f"{task} {rate:g}" for task, rate in self.single_rates.items())
        return (
            f"Learning rate {self.learning_rate:g} and sampler {self.sampler!r} are the best of MT at seed {SEED} ({tried})"
            + (f"; single-task learning rates, each the best of its own row: {single}." if single else ".")
        )


def tune(bench: TextBench, run_jobs: RunJobs, *, single: bool = False) -> Tuned:
    """Find the best learning rate, then the best sampler, of MT, and with `single` the best learning rate of each ST row.

    Args:
        bench: Its recipe says where to begin; results go below its folder, and are used again.
        run_jobs: Runs jobs.
        single: Tune the single-task rows too.
    """
    rates = [factor * bench.recipe.learning_rate for factor in RATES]
    by_rate = {rate: _tried(bench, rate, bench.recipe.sampler) for rate in rates}
    jobs = [job for one in by_rate.values() for job in _plain(one)]
    if single:
        jobs += [job for one in by_rate.values() for job in _single(one)]
    run_jobs(_with_data(bench, jobs))
    scores = {f"{rate:g}": _mean(one) for rate, one in by_rate.items()}
    best = max(rates, key=lambda rate: scores[f"{rate:g}"])
    by_sampler = {sampler: _tried(bench, best, sampler) for sampler in get_args(Sampler)}
    run_jobs(_with_data(bench, [job for one in by_sampler.values() for job in _plain(one)]))
    of_samplers = {sampler: _mean(one) for sampler, one in by_sampler.items()}
    return Tuned(
        best,
        max(of_samplers, key=lambda sampler: of_samplers[sampler]),
        {t.name: max(rates, key=lambda r, t=t: _own_score(by_rate[r], t.name)) for t in bench.tasks} if single else {},
        {**scores, **{name: value for name, value in of_samplers.items() if name != bench.recipe.sampler}},
    )


def _tried(bench: TextBench, rate: float, sampler: Sampler) -> TextBench:
    recipe = replace(bench.recipe, learning_rate=rate, sampler=sampler)
    folder = bench.out / f"{rate:g}-{sampler.replace(' ', '-')}"
    return replace(bench, recipe=recipe, seed=SEED, out=folder, single_rates={})


def _plain(bench: TextBench) -> list[Job]:
    label = f"tune {bench.recipe.learning_rate:g} {bench.recipe.sampler}: "
    jobs = [
        Job(label + FIRST, first_steps, (bench,), ("sentences",)),
        Job(label + "MT", finish, (bench, "MT"), (label + FIRST,)),
    ]
    if is_done(bench, "MT"):
        return []
    return [replace(jobs[1], after=("sentences",))] if is_done(bench, FIRST) else jobs


def _single(bench: TextBench) -> list[Job]:
    label = f"tune {bench.recipe.learning_rate:g}: ST "
    return [
        Job(label + task.name, single_task, (bench, task), ("sentences",))
        for task in bench.tasks
        if not is_done(bench, f"ST {task.name}")
    ]


def _with_data(bench: TextBench, jobs: Sequence[Job]) -> list[Job]:
    return [Job("sentences", read, (bench,)), *jobs] if jobs else []


def _mean(bench: TextBench) -> float:
    return average(figures(bench, "MT")["measures"], bench.tasks)


def _own_score(bench: TextBench, task: str) -> float:
    return score(figures(bench, f"ST {task}")["measures"][task])
