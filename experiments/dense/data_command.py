"""The command `data check`: is what lies on disk what a suite means."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from experiments.dense.checking import show
from experiments.dense.checking.check import Read
from experiments.dense.nyud.suite import NyudChoices
from experiments.dense.nyud13.suite import Nyud13Choices
from experiments.dense.on_disk import SuiteName, check_data
from experiments.dense.pascal_context.suite import PascalChoices
from experiments.dense.taskonomy.suite import TaskonomyChoices

Flat = tyro.conf.arg(name="")
"""Options that are not behind a name of their own."""


@dataclass(frozen=True)
class How:
    """How thoroughly it is checked, and how it is told.

    Attributes:
        read: How much of the files is read: their names, their first and last bytes, or every pixel; by default every pixel, of
            Taskonomy first and last bytes, as every pixel takes hours.
        looked_at: How many images are decoded where first and last bytes are read; spread evenly.
        workers: Processes; by default one for each core.
        names: How many files of a finding are named.
    """

    read: Read | None = None
    looked_at: int | None = None
    workers: int | None = None
    names: int = 20


def run(suite: SuiteName, data: Path, choices: Any = None, how: How = How(), console: Console | None = None) -> int:
    """Check, print what was found, and return 1 where a run would fail, 0 otherwise.

    Args:
        suite: Its name.
        data: Its folder; never written to.
        choices: As of the run.
        how: How thoroughly.
        console: Where to print.
    """
    console = console or Console()
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bars: dict[str, TaskID] = {}

        def told(about: str, done: int, total: int) -> None:
            if about not in bars:
                bars[about] = progress.add_task(about, total=total)
            progress.update(bars[about], completed=done, total=total)

        findings = check_data(
            suite, data, choices, read=how.read, looked_at=how.looked_at, workers=how.workers, told=told
        )
    show(findings, console, names=how.names)
    return int(findings.failed)


def nyud(
    data: Annotated[Path, tyro.conf.Positional],
    choices: Annotated[NyudChoices, Flat] = NyudChoices(),  # noqa: B008
    how: Annotated[How, Flat] = How(),
) -> int:
    """NYUD-v2 with 40 classes: its folder, or nyu_depth_v2_labeled.mat."""
    return run("nyud", data, choices, how)


def nyud13(
    data: Annotated[Path, tyro.conf.Positional],
    choices: Annotated[Nyud13Choices, Flat] = Nyud13Choices(),  # noqa: B008
    how: Annotated[How, Flat] = How(),
) -> int:
    """The 13-class NYUv2 at 288 x 384: MTAN's folders, or parquet, which is unpacked into the user's cache."""
    return run("nyud13", data, choices, how)


def pascal_context(
    data: Annotated[Path, tyro.conf.Positional],
    choices: Annotated[PascalChoices, Flat] = PascalChoices(),  # noqa: B008
    how: Annotated[How, Flat] = How(),
) -> int:
    """PASCAL-Context with five tasks: the folder PASCALContext or PASCAL_MT."""
    return run("pascal_context", data, choices, how)


def taskonomy(
    data: Annotated[Path, tyro.conf.Positional],
    choices: Annotated[TaskonomyChoices, Flat] = TaskonomyChoices(),  # noqa: B008
    how: Annotated[How, Flat] = How(),
) -> int:
    """Taskonomy with eleven tasks, in any of the forms of a download."""
    return run("taskonomy", data, choices, how)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `data`: `check SUITE DIR`, and 1 where a run would fail.

    Args:
        arguments: What follows `data`; by default that of the process.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["check"]:
        given = given[1:]
    elif given and given[0] not in ("-h", "--help"):
        raise ValueError(f"data {given[0]}: there is only data check SUITE DIR.")
    commands = {"nyud": nyud, "nyud13": nyud13, "pascal_context": pascal_context, "taskonomy": taskonomy}
    return tyro.extras.subcommand_cli_from_dict(commands, prog="python -m experiments data check", args=given)
