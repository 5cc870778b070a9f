"""An analysis in the midst of training, after which the training goes on as if there had been none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtme._files import write_text
from dtme._pytree import map_tensors
from dtme._random import random_numbers_aside
from dtme.distributed.processes import Processes, processes_of
from dtme.measure.analyze import analyze
from dtme.measure.losses import TaskLosses
from dtme.report.report import ConflictReport

Batches = Iterable[Any] | Callable[[], Iterable[Any]]
"""Batches for analyses, or what gives them anew at each."""


@dataclass(frozen=True)
class Analysis:
    """What an analysis asks, of a model as it is in the midst of training.

    Attributes:
        task_losses: As in `dtme.analyze`; its batches come to the model's device first.
        batches: Batches of one's own, not those of the training loop, whose loader would go on from another place. The same in
            every process; each reads its share of them, the first process the first and so on in turn.
        options: Further ones of `dtme.analyze`.

    Raises:
        ValueError: `batches` is an iterator, which could be read once.
    """

    task_losses: TaskLosses
    batches: Batches
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.batches) and (
            not isinstance(self.batches, Iterable) or iter(self.batches) is self.batches
        ):
            raise ValueError(
                f"batches={self.batches!r}: analyses read them again and again. Give a list of batches, a loader of your own, or "
                "a function that makes one."
            )

        _check_not_prepared(self.batches)

    def check_own_batches(self, loader: Any) -> None:
        """Refuse batches that are those of the training loop.

        Raises:
            ValueError: They are its loader.
        """
        if self.batches is loader:
            raise ValueError(
                "batches is the loader of the training itself, which an analysis would read on: the training would see other "
                "batches. Give batches of your own: a few of the training set in a list, or a second loader."
            )

    def run(self, model: nn.Module) -> tuple[ConflictReport, dict[str, float]]:
        """The report, and each task's own loss on the batches that were read.

        No parameter, gradient, buffer, mode or random number of the training is another afterwards.
        """
        processes = processes_of(self.options.get("process_group"))
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        share, found = _Share(self.batches, processes), dict[tuple[str, int], float]()

        def task_losses(model: nn.Module, batch: Any) -> Any:
            losses = self.task_losses(model, map_tensors(batch, lambda tensor: tensor.to(device)))
            for task, loss in losses.items() if isinstance(losses, Mapping) else ():
                if isinstance(loss, Tensor) and loss.numel() == 1:  # of each batch once, however often it is passed
                    found[task, share.numbers[id(batch)]] = float(loss.detach())
            return losses

        with random_numbers_aside():
            report = analyze(model, task_losses, share, **self.options)
        return report, _means(processes.exchange(lambda: (found, None))[0], report.tasks)


class _Share:
    """Of some batches those that this process reads.

    Attributes:
        numbers: The place of a batch among them, by its identity.
    """

    def __init__(self, batches: Batches, processes: Processes) -> None:
        self.batches, self.processes = batches, processes
        self.numbers: dict[int, int] = {}

    def __iter__(self) -> Iterator[Any]:
        batches = self.batches() if callable(self.batches) else self.batches
        _check_not_prepared(batches)
        for number, batch in enumerate(islice(batches, self.processes.rank, None, self.processes.size)):
            self.numbers[id(batch)] = number
            yield batch


def _check_not_prepared(batches: Any) -> None:
    if any(kind.__module__.startswith("accelerate.") for kind in type(batches).__mro__):
        raise ValueError(
            "batches is a loader that accelerate has prepared, which takes its end for that of the training. Give batches "
            "that it has not: a list, or a loader of your own."
        )


def _means(told: list[dict[tuple[str, int], float]], tasks: tuple[str, ...]) -> dict[str, float]:
    """Over the batches of all processes, of each task that has losses."""
    of_tasks = {task: [loss for found in told for (own, _), loss in found.items() if own == task] for task in tasks}
    return {task: sum(losses) / len(losses) for task, losses in of_tasks.items() if losses}


def write_report(report: ConflictReport, folder: Path | None, step: int) -> list[Path]:
    """Write a report as `report-STEP.json`, to be read again, and as the table `report-STEP.txt`; the files written."""
    if folder is None:
        return []
    data, table = folder / f"report-{step}.json", folder / f"report-{step}.txt"
    report.save(data)
    write_text(table, f"{report}\n")
    return [table, data]
