"""Where a row branches off plain multi-task training: the step, and the analysis made there."""

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
from dtme.bench.experiment import Bench, keep
from dtme.bench.jobs import Report
from dtme.bench.model import build, hash_of
from dtme.bench.recipe import Recipe
from dtme.bench.suite import Suite
from dtme.bench.training import Run, data_order, optimiser, task_losses, train
from dtme.report import ConflictReport


@dataclass(frozen=True)
class BranchPoint:
    """A moment of plain training, and how conflicts are measured there.

    Attributes:
        moment: Share of the steps left at the recipe's own moment, `expand_at`, that plain training takes before.
        variance_ratio: r of the analysis.
    """

    moment: float = 0.0
    variance_ratio: float = 100.0

    def __post_init__(self) -> None:
        if not 0 <= self.moment < 1:
            raise ValueError(f"moment={self.moment}: give a share of the steps, from 0 up to but not 1.")

    @property
    def name(self) -> str:
        """Of the job that brings plain training there."""
        if self == BranchPoint():
            return "MT, first steps"
        return f"MT, {self.moment:.0%} of the steps" + (
            "" if self.variance_ratio == 100 else f", r {self.variance_ratio:g}"
        )

    def step(self, recipe: Recipe) -> int:
        """The step of insertion."""
        return recipe.expand_at + round(self.moment * (recipe.steps - recipe.expand_at))

    def start(self, bench: Bench) -> Path:
        """Where the state of plain training at this point is kept."""
        return bench.out / ("start.pt" if self.moment == 0 else f"start-{self.moment:g}.pt")

    def report(self, bench: Bench) -> Path:
        """Where the report of the analysis is kept."""
        own = "" if self == BranchPoint() else f"-{self.moment:g}-{self.variance_ratio:g}"
        return bench.out / f"report{own}.json"

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


def reach(bench: Bench, point: BranchPoint, report: Report) -> None:
    """Plain training from the recipe's moment to another, and the analysis there."""
    suite = bench.load()
    run = plain_run(bench, suite)
    run.restore(torch.load(BranchPoint().start(bench), weights_only=True))
    _on_to(point, run, bench, suite, report)
    keep(bench, point.name, _analysed(point, run, bench, suite))


def plain_run(bench: Bench, suite: Suite) -> Run:
    """Plain multi-task training, about to be given its state."""
    model = build(suite.tasks, bench.recipe, bench.seed)
    return Run(model, suite.tasks, optimiser(model, bench.recipe))


def analysis_batches(bench: Bench, suite: Suite) -> list[dict[str, torch.Tensor]]:
    """The batches that every analysis of a seed reads."""
    recipe = bench.recipe
    order = data_order(len(suite.train), recipe.batch, recipe.analysis_batches, hash_of(bench.seed, "analysis"))
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


def analyse(model: nn.Module, bench: Bench, suite: Suite, variance_ratio: float = 100.0) -> ConflictReport:
    """The analysis of a model on the batches that every analysis of a seed reads."""
    return analyze(
        model,
        lambda model, batch: task_losses(model, batch, suite.tasks),
        analysis_batches(bench, suite),
        variance_ratio=variance_ratio,
    )


def _analysed(point: BranchPoint, run: Run, bench: Bench, suite: Suite) -> dict[str, Any]:
    began = time.perf_counter()
    conflicts = analyse(run.model, bench, suite, point.variance_ratio)
    seconds = time.perf_counter() - began
    conflicts.save(point.report(bench))
    return {"analysis_seconds": seconds}
