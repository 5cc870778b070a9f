"""What has to be known of a suite in order to check its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from experiments.dense.checking.findings import Findings
from experiments.dense.checking.looking import Progress
from experiments.dense.checking.statistics import Seen
from experiments.dense.datasets.facts import DenseSuite
from experiments.dense.datasets.reader import Reader


class Maker(Protocol):
    """Makes the suite of what a reader reads."""

    def __call__(self, reader: Any, choices: Any, *, seed: int = 0) -> DenseSuite:
        """The suite."""
        ...


@dataclass(frozen=True)
class CheckedSuite:
    """A suite of data on disk, and what is known of its data.

    Attributes:
        name: As the command line calls it.
        tasks: All that it has.
        choices: The class of its choices, whose defaults are what a run takes unless told otherwise.
        opened: The reader of a folder, given choices and progress.
        made_from: The suite of a reader, given choices.
        official: Adds what is official and what of it is not there: counts, lists, sizes.
        suspect: Adds what the maps' statistics say against the data.
        sources: Where the field gets the data.
        lenient: Changes of the choices under which an incomplete copy can still be looked at.
        looked_at: How many images are decoded unless told otherwise; `None`: all.
    """

    name: str
    tasks: tuple[str, ...]
    choices: type
    opened: Callable[[Path, Any, Progress | None], Reader]
    made_from: Maker
    official: Callable[[DenseSuite, Findings], None]
    suspect: Callable[[DenseSuite, Seen, Findings], None]
    sources: str
    lenient: Mapping[str, Any]
    looked_at: int | None = None
