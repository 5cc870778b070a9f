"""Where a row branches off plain multi-task training, or off another row: the step, and the analysis made there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtme._files import written_whole
from dtme.analysis import analyze
from dtme.bench.beginnings import start_of
from dtme.bench.experiment import Bench, figures, keep, path_of
from dtme.bench.jobs import Report
from dtme.bench.model import build, hash_of
from dtme.bench.recipe import Recipe
from dtme.bench.suite import Suite
from dtme.bench.training import Run, data_order, optimiser, task_losses, train, weighted
from dtme.report import ConflictReport


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
            return path_of(bench, self.name, "pt")
        return bench.out / ("start.pt" if self.moment == 0 else f"start-{self.moment:g}.pt")

    def report(self, bench: Bench) -> Path:
        """Where the report of the analysis is kept."""
        if self.of != "MT":
            return path_of(bench, f"report of {self.name}", "json")
        own = "" if self == BranchPoint() else f"-{self.moment:g}-{self.variance_ratio:g}"
        return bench.out / f"report{own}{'' if self.reading == 1 else f'-{self.reading:g}'}.json"

    def measured(self, bench: Bench) -> ConflictReport:
        """The report of the analysis."""
        return ConflictReport.load(self.report(bench))


def begin(bench: Bench, report: Report) -> None:
    """The plain multi-task run up to the recipe's moment, and the analysis there."""
    suite, recipe = bench.load(), bench.recipe
    model = build(suite.tasks, recipe, bench.seed, start_of(bench, report))
    run = Run(model, suite.tasks, optimiser(model, recipe))
    _on_to(BranchPoint(), run, bench, suite, report)
    found = _analysed(BranchPoint(), run, bench, suite)
    spare = Run(model, suite.tasks, optimiser(model, recipe))  # for the price of a step; its training is thrown away
    train(spare, suite.train, recipe, seed=0, steps=20, until=20, advance=lambda step: None)
    keep(bench, "MT, first steps", {**found, "analysis_steps": found["analysis_seconds"] / (spare.seconds / 20)})


def reach(bench: Bench, point: BranchPoint, run: Run, suite: Suite, report: Report) -> None:
    """Training from where a run is to the moment of a branch point, and the analysis there."""
    _on_to(point, run, bench, suite, report)
    keep(bench, point.name, _analysed(point, run, bench, suite))


def price_of_analysis(bench: Bench, point: BranchPoint) -> tuple[float, float]:
    """Seconds that the analysis at a branch point took, and how many steps of plain training take as long."""
    first, own = figures(bench, BranchPoint().name), figures(bench, point.name)["analysis_seconds"]
    return own, own * first["analysis_steps"] / first["analysis_seconds"]


def plain_run(bench: Bench, suite: Suite) -> Run:
    """Plain multi-task training, about to be given its state."""
    model = build(suite.tasks, bench.recipe, bench.seed)
    return Run(model, suite.tasks, optimiser(model, bench.recipe))


def analysis_batches(bench: Bench, suite: Suite, point: BranchPoint = BranchPoint()) -> list[dict[str, torch.Tensor]]:
    """The batches that every analysis of a seed reads, or so many times as many: more are these and others."""
    many = point.batches(bench.recipe)
    order = data_order(len(suite.train), bench.recipe.batch, many, hash_of(bench.seed, "analysis"))
    return [suite.train.batch(rows) for rows in order]


def _on_to(point: BranchPoint, run: Run, bench: Bench, suite: Suite, report: Report) -> None:
    recipe, until = bench.recipe, point.step(bench.recipe)
    train(
        run,
        suite.train,
        recipe,
        seed=bench.seed,
        steps=recipe.steps,
        until=until,
        advance=lambda step: report(step, until),
    )
    with written_whole(point.start(bench)) as temporary:
        torch.save(run.state(), temporary)


def conflict_of(model: nn.Module, bench: Bench, suite: Suite) -> dict[str, float]:
    """Mean score over the blocks in either space, on the batches that every analysis of a seed reads (Tab. 14)."""
    found = analyse(model, bench, suite)
    return {"range": float(found.range_score().mean()), "null": float(found.null_score().mean())}


def analyse(model: nn.Module, bench: Bench, suite: Suite, point: BranchPoint = BranchPoint()) -> ConflictReport:
    """The analysis of a model as one is made at a branch point, by default at the recipe's own."""
    return analyze(
        model,
        lambda model, batch: weighted(task_losses(model, batch, suite.tasks), suite.tasks),
        analysis_batches(bench, suite, point),
        variance_ratio=point.variance_ratio,
    )


def _analysed(point: BranchPoint, run: Run, bench: Bench, suite: Suite) -> dict[str, Any]:
    began = time.perf_counter()
    conflicts = analyse(run.model, bench, suite, point)
    seconds = time.perf_counter() - began
    conflicts.save(point.report(bench))
    return {"analysis_seconds": seconds}
