"""Look at the conflicts of a model every so many steps of its training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from dtme.distributed.processes import processes_of
from dtme.integrations.analysing import Analysis, Batches, write_report
from dtme.integrations.trackers import Tracker, as_trackers, tell
from dtme.measure.losses import TaskLosses
from dtme.report.report import ConflictReport


class Watch:
    """Analyses a model every so many steps of any loop, and tells trackers what it finds.

    The training is the same with and without it, to the bit.

    Args:
        task_losses: As in `dtme.analyze`.
        batches: Of your own: a list, a loader beside that of the training, or a function that makes either. The same in every
            process; each reads its share.
        every: Steps from one analysis to the next.
        trackers: Get conflict per block and pair, that above chance, gradient sizes, even weights, each task's loss, a map, and
            the report as files.
        folder: For reports, `report-STEP.json` and `.txt`; `None` writes none.
        options: Further ones of `dtme.analyze`, `max_samples=256` say.

    Raises:
        ValueError: `every` is less than 1, or `batches` can be read but once.

    Example:
        >>> watch = Watch(lambda model, batch: {}, [1, 2], every=100)
        >>> [step for step in range(301) if watch.is_due(step)]
        [100, 200, 300]
    """

    def __init__(
        self,
        task_losses: TaskLosses,
        batches: Batches,
        *,
        every: int,
        trackers: Iterable[Tracker] = (),
        folder: str | Path | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r}: give a number of steps of at least 1.")
        self.analysis = Analysis(task_losses, batches, options)
        self.every = every
        self.trackers = as_trackers(trackers)
        self.folder = None if folder is None else Path(folder)
        self._last = 0

    def is_due(self, step: int) -> bool:
        """Whether so many steps of the training ask for an analysis, of which each asks for one."""
        return step > 0 and step % self.every == 0 and step != self._last

    def after_step(self, model: nn.Module, step: int) -> ConflictReport | None:
        """Call it when a step is done, in every process: the report, if one was due.

        Args:
            model: Also in DistributedDataParallel.
            step: How many steps are done.
        """
        if not self.is_due(step):
            return None
        self._last = step
        report, losses = self.analysis.run(model)
        if processes_of(None).rank == 0:
            tell(self.trackers, report, losses, step, write_report(report, self.folder, step))
        return report
