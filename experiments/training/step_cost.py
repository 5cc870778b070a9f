"""What a row's steps and passes cost against those of plain multi-task training, taken in turns.

Machines drift, so that plain training and a method take turns on the same batches; what is reported is the median of the ratios
within a turn. One method at a time is held beside plain training: trunks may be large.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch

from experiments.training.run import Run, step

TURNS = 7
"""Turns that count; one more comes first and does not."""


def compare(plain: Run, own: Sequence[Run], batches: Sequence[Any]) -> tuple[float, float]:
    """The time of a training step, and of a pass in evaluation mode, each as a multiple of plain training's.

    Args:
        plain: Plain multi-task training; trained on by this measurement, as the others are.
        own: The method's runs: several where it trains several models, as single-task training does, whose sum is its price.
        batches: One for each turn; the first one warms up.
    """
    of_steps, of_passes = [], []
    for turn, batch in enumerate(batches):
        ratios = [
            sum(_seconds(work, run, batch) for run in own) / _seconds(work, plain, batch) for work in (take_step, infer)
        ]
        if turn:
            of_steps.append(ratios[0])
            of_passes.append(ratios[1])
    return statistics.median(of_steps), statistics.median(of_passes)


def take_step(run: Run, batch: Any) -> None:
    """Forward, backward and update; the run's place in its schedule stays, as it is not what is measured."""
    run.model.train()
    before = run.step
    step(run, batch)
    run.step = before


@torch.no_grad()
def infer(run: Run, batch: Any) -> None:
    """A pass in evaluation mode."""
    run.model.eval()
    run.workload.infer(run.model, batch)


def count_parameters(runs: Sequence[Run]) -> int:
    """Of all models of some runs."""
    return sum(parameter.numel() for run in runs for parameter in run.model.parameters())


def _seconds(work: Callable[[Run, Any], None], run: Run, batch: Any) -> float:
    began = perf_counter()
    work(run, batch)
    if next(run.model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return perf_counter() - began
