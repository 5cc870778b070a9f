"""Where a row branches off plain multi-task training, or off another row: the step, and the analysis made there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtme.measure.analyze import analyze
from dtme.report.report import ConflictReport
from experiments.dense.experiment import Bench
from experiments.dense.model import build
from experiments.dense.multi_task_model import MultiTaskModel
from experiments.dense.pretraining import start_of
from experiments.dense.recipe import Recipe
from experiments.dense.suite import Batch, Suite
from experiments.dense.training import begin, task_losses, weigh
from experiments.runner.jobs import Report
from experiments.runner.processes import by_first
from experiments.runner.resume import is_whole, write_state
from experiments.runner.seeds import hash_of
from experiments.training.run import Run, train


@dataclass(frozen=True)
class BranchPoint:
    """A moment of training, and how conflicts are measured there.

    Attributes:
        moment: Share of the steps left at the recipe's own moment, `expand_at`, that are taken before.
        variance_ratio: r of the analysis.
        reading: Batches that the analysis reads, as a multiple of the recipe's.
        of: The row in whose training the moment lies.
    """

    moment: float = 0.0
    variance_ratio: float = 100.0
    reading: float = 1.0
    of: str = "MT"

    def __post_init__(self) -> None:
        if not 0 <= self.moment < 1:
            raise ValueError(f"moment={self.moment}: give a share of the steps, from 0 up to but not 1.")
        if self.reading <= 0:
            raise ValueError(f"reading={self.reading}: give a multiple of the recipe's batches, above 0.")

    @property
    def name(self) -> str:
        """Of the job that brings plain training there."""
        if self == BranchPoint():
            return "MT, first steps"
        return (
            f"{self.of}, {self.moment:.0%} of the steps"
            + ("" if self.variance_ratio == 100 else f", r {self.variance_ratio:g}")
            + ("" if self.reading == 1 else f", reading {self.reading:g} x")
        )

    def step(self, recipe: Recipe) -> int:
        """The step of insertion."""
        return recipe.expand_at + round(self.moment * (recipe.steps - recipe.expand_at))

    def batches(self, recipe: Recipe) -> int:
        """How many batches the analysis reads."""
        return max(1, round(self.reading * recipe.analysis_batches))

    def start(self, bench: Bench) -> Path:
        """Where the state of training at this point is kept."""
        if self.of != "MT":
            return bench.path_of(self.name, "pt")
        return bench.out / ("start.pt" if self.moment == 0 else f"start-{self.moment:g}.pt")

    def report(self, bench: Bench) -> Path:
        """Where the report of the analysis is kept."""
        if self.of != "MT":
            return bench.path_of(f"report of {self.name}", "json")
        own = "" if self == BranchPoint() else f"-{self.moment:g}-{self.variance_ratio:g}"
        return bench.out / f"report{own}{'' if self.reading == 1 else f'-{self.reading:g}'}.json"

    def is_whole(self, bench: Bench) -> bool:
        """Whether what rows branch off from is still there; where it is not, a warning names the file."""
        return is_whole(self.start(bench))

    def measured(self, bench: Bench) -> ConflictReport:
        """The report of the analysis."""
        return ConflictReport.load(self.report(bench))


def train_first_steps(bench: Bench, report: Report) -> None:
    """The plain multi-task run up to the recipe's moment, and the analysis there."""
    suite = bench.load()
    run = plain_run(bench, suite, start_of(bench, report))
    _train_on_to(BranchPoint(), run, bench, report)
    found = _analyse_at(BranchPoint(), run, bench, suite)
    few = min(20, bench.recipe.steps)
    spare = plain_run(bench, suite, run.model.state_dict(), steps=few)  # for the price of a step
    train(spare)
    bench.write_row("MT, first steps", {**found, "analysis_steps": found["analysis_seconds"] / (spare.seconds / few)})


def reach(bench: Bench, point: BranchPoint, run: Run, suite: Suite, report: Report) -> None:
    """Training from where a run is to the moment of a branch point, and the analysis there."""
    _train_on_to(point, run, bench, report)
    bench.write_row(point.name, _analyse_at(point, run, bench, suite))


def price_of_analysis(bench: Bench, point: BranchPoint) -> tuple[float, float]:
    """Seconds that the analysis at a branch point took, and how many steps of plain training take as long."""
    first, own = bench.read_row(BranchPoint().name), bench.read_row(point.name)["analysis_seconds"]
    return own, own * first["analysis_steps"] / first["analysis_seconds"]


def plain_run(
    bench: Bench, suite: Suite, start: Mapping[str, torch.Tensor] | None = None, *, steps: int | None = None
) -> Run:
    """Plain multi-task training at its first step.

    Args:
        bench: The seed.
        suite: Its data.
        start: The weights it begins with, if it is not about to be given its state.
        steps: Length of the schedule, if not the recipe's.
    """
    model = build(suite.tasks, bench.recipe, bench.seed, start)
    return begin(model, suite.tasks, suite.train, bench.recipe, seed=bench.seed, steps=steps)


def analysis_batches(bench: Bench, suite: Suite, point: BranchPoint = BranchPoint()) -> Iterable[Batch]:
    """The batches that every analysis of a seed reads, or so many times as many: more are these and others."""
    return suite.train.steps(bench.recipe.batch, hash_of(bench.seed, "analysis"), point.batches(bench.recipe))


def _train_on_to(point: BranchPoint, run: Run, bench: Bench, report: Report) -> None:
    until = point.step(bench.recipe)
    train(run, until, advance=lambda step, _: report(step, until))
    by_first(lambda: write_state(point.start(bench), run.state()))


def conflict_of(model: nn.Module, bench: Bench, suite: Suite) -> dict[str, float]:
    """Mean score over the blocks in either space, on the batches that every analysis of a seed reads (Tab. 14)."""
    found = analyse(model, bench, suite)
    return {"range": float(found.range_score().mean()), "null": float(found.null_score().mean())}


def analyse(
    model: nn.Module,
    bench: Bench,
    suite: Suite,
    point: BranchPoint = BranchPoint(),
    batches: Sequence[Batch] | None = None,
) -> ConflictReport:
    """The analysis of a model as one is made at a branch point, by default at the recipe's own.

    Args:
        model: What is analysed.
        bench: The seed.
        suite: Its data.
        point: Whose batches are read.
        batches: Others that are read in their place, of the tasks that something is known of in them.
    """
    known = [task.name for task in suite.tasks if batches is None or any(task.name in batch for batch in batches)]
    return analyze(
        model,
        lambda model, batch: weigh(task_losses(model, batch, suite.tasks), suite.tasks),
        analysis_batches(bench, suite, point) if batches is None else batches,
        tasks=known,  # all of them, in however few images something is known of one
        blocks=model.blocks if isinstance(model, MultiTaskModel) else None,
        variance_ratio=point.variance_ratio,
        max_samples=None,
    )


def fullest_batch(bench: Bench, suite: Suite) -> Batch:
    """A batch to take prices on: the first one of the split or, where images are labelled in part, one that more tasks know."""
    names = {task.name for task in suite.tasks}
    best = suite.train.batch(slice(0, bench.recipe.batch))
    if not names <= best.keys():
        for batch in analysis_batches(bench, suite):
            if len(names & batch.keys()) > len(names & best.keys()):
                best = batch
            if names <= best.keys():
                break
    return best


def _analyse_at(point: BranchPoint, run: Run, bench: Bench, suite: Suite) -> dict[str, Any]:
    began = time.perf_counter()
    conflicts = analyse(run.model, bench, suite, point)
    seconds = time.perf_counter() - began
    by_first(lambda: conflicts.save(point.report(bench)))
    return {"analysis_seconds": seconds}
