"""The table of ratios: rows, the file they are committed in, and what fails: beyond a limit, or worse than committed."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import dtme
from benchmarks.clock import CLOCK, Middle
from experiments.runner.environment import hardware

SLACK = 1.15
"""How many times worse a ratio may be than the committed one."""


@dataclass(frozen=True)
class Row:
    """One ratio.

    Attributes:
        group: What it is about.
        what: One thing / another.
        ratio: Median and quartiles.
        at_most: What it is to stay below, where small is good.
        at_least: What it is to stay above, where large is good.
        compared: Whether it is held against the committed one, too: of what is rounding, 15 % more says nothing.
    """

    group: str
    what: str
    ratio: Middle
    at_most: float | None = None
    at_least: float | None = None
    compared: bool = True

    @property
    def key(self) -> str:
        """What makes it the same ratio as one measured before: figures in brackets do not."""
        return f"{self.group}: {self.what.partition(' (')[0]}"

    @property
    def wanted(self) -> str:
        """The limit, in words."""
        if self.at_most is not None:
            return f"≤ {self.at_most:.{self.digits}f}"
        return f"≥ {self.at_least:g}" if self.at_least else ""

    @property
    def digits(self) -> int:
        """How many digits after the point tell it from its limit."""
        return 2 if self.at_most is None or self.at_most > 0.1 else 4


def beyond(measured: Iterable[Row]) -> list[str]:
    """The rows that are beyond their own limits; what is not a number is."""
    return [
        f"{row.group}, {row.what}: {row.ratio.value:.{row.digits}f}, wanted {row.wanted or 'a number'}"
        for row in measured
        if not (
            math.isfinite(row.ratio.value)
            and (row.at_most is None or row.ratio.value <= row.at_most)
            and (row.at_least is None or row.ratio.value >= row.at_least)
        )
    ]


def regressions(measured: Iterable[Row], committed: Iterable[Row]) -> list[str]:
    """The ratios that are worse than the committed ones by more than the slack, and those that were not measured."""
    measured, committed = list(measured), list(committed)
    before = {row.key: row.ratio.value for row in committed}
    missing = before.keys() - {row.key for row in measured}
    worse = [
        f"{row.group}, {row.what}: committed {row.ratio.value:.3f}, not measured"
        for row in committed
        if row.key in missing
    ]
    for row in measured:
        old, new = before.get(row.key), row.ratio.value
        if old is None or not row.compared:
            continue
        if not (new <= SLACK * old if row.at_most is not None else new >= old / SLACK):  # so that NaN is worse, too
            worse.append(f"{row.group}, {row.what}: {new:.3f}, committed {old:.3f}")
    return worse


def table(rows: Sequence[Row]) -> str:
    """A table in Markdown."""
    lines = ["| | ratio | measured | quartiles | wanted |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        low, value, high = (f"{number:.{row.digits}f}" for number in (row.ratio.low, row.ratio.value, row.ratio.high))
        spread = f"{low} to {high}" if row.ratio.low < row.ratio.high else ""
        lines.append(f"| {row.group} | {row.what} | {value} | {spread} | {row.wanted} |")
    return "\n".join(lines)


def save(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with the machine and the versions they were measured with."""
    data = {
        "command": "python -m benchmarks --record",
        "hardware": hardware(),
        "clock": CLOCK,
        "versions": {"torch": torch.__version__, "dtme": dtme.__version__, "python": platform.python_version()},
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> list[Row]:
    """The rows of a file that `save` wrote."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [Row(**{**row, "ratio": Middle(**row["ratio"])}) for row in rows]
