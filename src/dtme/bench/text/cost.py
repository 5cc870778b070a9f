"""What a row costs: its training step and its pass against those of plain multi-task training, taken in turns.

Machines drift, so that MT and a method take turns on the same batches; what is reported is the median
of the ratios within a turn. One method at a time is held beside MT: trunks are large.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import torch

from dtme.bench.text.batches import batches
from dtme.bench.text.suite import Batch
from dtme.bench.text.training import TextRun, step, task_losses

TURNS = 7


@dataclass(frozen=True)
class Prices:
    """Ratios to plain multi-task training, by method.

    Attributes:
        step: Time of a training step: forward, backward and update.
        inference: Time of a pass in evaluation mode.
        added: Parameters more than MT's.
        parameters: Of MT.
    """

    step: Mapping[str, float]
    inference: Mapping[str, float]
    added: Mapping[str, int]
    parameters: int


def prices(
    plain: Callable[[], TextRun],
    others: Mapping[str, Callable[[], TextRun]],
    *,
    advance: Callable[[int, int], None] | None = None,
) -> Prices:
    """The price of each method.

    Args:
        plain: Makes the run of MT; it is trained on by this measurement, and thrown away.
        others: Make the runs of the methods.
        advance: Told the methods done, and all of them.
    """
    base = plain()
    parameters = _parameters(base)
    taken = [
        batch.to(_device(base))
        for batch in batches(base.suite, base.drawing, start=base.step, until=base.step + TURNS + 1)
    ]
    steps, passes, added = {}, {}, {}
    for place, (name, make) in enumerate(others.items()):
        own = make()
        added[name] = _parameters(own) - parameters
        of_steps, of_passes = [], []
        for turn, batch in enumerate(taken):
            ratio = _seconds(_step, own, batch) / _seconds(_step, base, batch)
            inference = _seconds(_infer, own, batch) / _seconds(_infer, base, batch)
            if turn:  # the first one warms up
                of_steps.append(ratio)
                of_passes.append(inference)
        steps[name], passes[name] = statistics.median(of_steps), statistics.median(of_passes)
        del own
        if advance is not None:
            advance(place + 1, len(others))
    return Prices(steps, passes, added, parameters)


def _device(run: TextRun) -> torch.device:
    return next(run.model.parameters()).device


def _parameters(run: TextRun) -> int:
    return sum(parameter.numel() for parameter in run.model.parameters())


def _seconds(work: Callable[[TextRun, Batch], None], run: TextRun, batch: Batch) -> float:
    began = perf_counter()
    work(run, batch)
    if batch.tasks.is_cuda:
        torch.cuda.synchronize()
    return perf_counter() - began


def _step(run: TextRun, batch: Batch) -> None:
    run.model.train()
    before = run.step
    step(run, batch)
    run.step = before  # its place in the schedule is not what is measured


@torch.no_grad()
def _infer(run: TextRun, batch: Batch) -> None:
    run.model.eval()
    task_losses(run.model, run.suite, batch, run.recipe.precision)
