"""The suites that read data from disk, by name: what a command line and an engine ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from experiments.dense.checking import CheckedSuite, Findings, check, check_before_run
from experiments.dense.checking.check import Read, Told
from experiments.dense.datasets.facts import DenseSuite
from experiments.dense.nyud.check import NYUD
from experiments.dense.nyud13.check import NYUD13
from experiments.dense.pascal_context.check import PASCAL_CONTEXT
from experiments.dense.taskonomy.check import TASKONOMY

SuiteName = Literal["nyud", "nyud13", "pascal_context", "taskonomy"]

SUITES: dict[str, CheckedSuite] = {entry.name: entry for entry in (NYUD, NYUD13, PASCAL_CONTEXT, TASKONOMY)}


def load_suite(
    name: SuiteName,
    data: Path,
    choices: Any = None,
    *,
    seed: int = 0,
    checked: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> DenseSuite:
    """A suite, after the cheap part of the check.

    Args:
        name: Of the suite.
        data: Its folder; never written to.
        choices: Of the suite's class of choices; by default its defaults.
        seed: Of the augmentation.
        checked: Whether to check first, which takes seconds.
        progress: Told of what takes long, as listing Taskonomy.

    Raises:
        DataError: It is not there, is something else, or would fail a run.
        ValueError: A choice does not fit it.
    """
    entry = SUITES[name]
    choices = entry.choices() if choices is None else choices
    suite = entry.made_from(entry.opened(data, choices, progress), choices, seed=seed)
    if checked:
        check_before_run(entry, suite, data, choices).require()
    return suite


def check_data(
    suite: SuiteName,
    data: Path,
    choices: Any = None,
    *,
    read: Read | None = None,
    looked_at: int | None = None,
    workers: int | None = None,
    told: Told | None = None,
) -> Findings:
    """Everything there is to say about the data of a suite, as `checking.check`.

    Args:
        suite: Its name.
        data: Its folder; never written to.
        choices: As of the run; by default the suite's defaults.
        read: How much of the files is read; by default all pixels, or of Taskonomy headers.
        looked_at: How many images are decoded where headers are read.
        workers: Processes; by default one for each core.
        told: Told of progress.
    """
    return check(SUITES[suite], data, choices, read=read, looked_at=looked_at, workers=workers, told=told)
