"""What a check found: facts, what is worth knowing, and what a run would fail of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from experiments.dense.datasets.errors import DataError

Level = Literal["fact", "note", "error"]
"""A fact; something that changes what numbers mean, or that is left out; something that a run would fail of."""


@dataclass(frozen=True)
class Finding:
    """One of them.

    Attributes:
        level: How bad it is.
        about: What it is about, in a word or two.
        said: What was found, and what helps.
        names: Of the files or images concerned.
    """

    level: Level
    about: str
    said: str
    names: tuple[str, ...] = ()


@dataclass
class Findings:
    """All of a check.

    Attributes:
        suite: Name of the suite.
        data: What was checked.
        found: In the order in which it was found.
    """

    suite: str
    data: Path
    found: list[Finding] = field(default_factory=list)

    def add(self, level: Level, about: str, said: str, names: Sequence[str] = ()) -> None:
        """One more."""
        self.found.append(Finding(level, about, said, tuple(names)))

    @property
    def errors(self) -> list[Finding]:
        """Those that a run would fail of."""
        return [finding for finding in self.found if finding.level == "error"]

    @property
    def failed(self) -> bool:
        """Whether a run would fail."""
        return bool(self.errors)

    def require(self) -> None:
        """Raise what a run would fail of.

        Raises:
            DataError: There is something.
        """
        if not self.failed:
            return
        lines = [
            f"{self.data} is not fit for a run of {self.suite}:",
            *(f"- {error.about}: {error.said}{some_of(error.names, ' ')}" for error in self.errors),
            f"All of it: python -m experiments data check {self.suite} {self.data}",
        ]
        raise DataError("\n".join(lines), self.data)


def some_of(names: Sequence[str], before: str = "", most: int = 5) -> str:
    """The first few names, and how many more there are.

    >>> some_of(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    if not names:
        return ""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return before + ", ".join(names[:most]) + rest
