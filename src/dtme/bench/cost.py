"""What a row costs: its training step and its inference pass against those of plain multi-task training.

Machines drift, so the models take turns, and what is reported is the median of the ratios within a turn. The work
itself is counted beside the time, by torch's FLOP counter.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import torch

from dtme.bench.recipe import Recipe
from dtme.bench.suite import Split
from dtme.bench.training import Run, step
from dtme.products import Products, plain_products


@dataclass(frozen=True)
class Cost:
    """Ratios to plain multi-task training.

    Attributes:
        step: Time of a training step: forward, backward and update.
        inference: Time of a forward pass in evaluation mode, all tasks.
        step_flops: Floating-point operations of a training step, forward and backward.
        inference_flops: Floating-point operations of the forward pass.
    """

    step: float
    inference: float
    step_flops: float
    inference_flops: float


def costs(
    runs: Mapping[str, list[Run]],
    split: Split,
    recipe: Recipe,
    *,
    turns: int = 7,
    advance: Callable[[int, int], None] | None = None,
) -> dict[str, Cost]:
    """The cost of each method relative to `"MT"`; a method of several models, as single-task training, costs their sum.

    Args:
        runs: Per method its models with their optimisers; trained on by this measurement.
        split: To take batches from.
        recipe: Its batch size is used.
        turns: How often the methods take turns; one more comes first and does not count.
        advance: Told the turns done and all turns.
    """
    batch = split.batch(slice(0, recipe.batch))
    steps: dict[str, list[float]] = {method: [] for method in runs}
    passes: dict[str, list[float]] = {method: [] for method in runs}
    for turn in range(turns + 1):
        for method, members in runs.items():
            training = sum(_seconds(lambda run=run: training_step(run, batch)) for run in members)
            inference = sum(_seconds(lambda run=run: _infer(run, batch)) for run in members)
            if turn:
                steps[method].append(training)
                passes[method].append(inference)
        if advance is not None:
            advance(turn + 1, turns + 1)
    work_of = {
        method: [
            sum(flops(lambda run=run, work=work: work(run, batch)) for run in members)
            for work in (training_step, _infer)
        ]
        for method, members in runs.items()
    }
    return {
        method: Cost(
            _ratio(steps[method], steps["MT"]),
            _ratio(passes[method], passes["MT"]),
            work_of[method][0] / work_of["MT"][0],
            work_of[method][1] / work_of["MT"][1],
        )
        for method in runs
    }


def _ratio(own: list[float], plain: list[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(own, plain, strict=True))


def _seconds(work: Callable[[], None]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of some work, with attention as plain products, which the counter knows on every device."""
    with plain_products(), Products() as products:
        work()
    return products.total


def training_step(run: Run, batch: dict[str, torch.Tensor]) -> None:
    """Forward, backward and update."""
    run.model.train()
    step(run, batch)


@torch.no_grad()
def _infer(run: Run, batch: dict[str, torch.Tensor]) -> None:
    run.model.eval()
    run.model(batch["image"])
