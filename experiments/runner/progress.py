"""Progress in the terminal: bars where there is one, plain lines where the output goes elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from experiments.runner.jobs import Display


@contextmanager
def shown(console: Console) -> Iterator[Display]:
    """A display fit for the console, while the context lasts."""
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)


class Bars:
    """A bar for each job."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bars: dict[str, TaskID] = {}

    def update(self, name: str, done: int, total: int) -> None:
        """Move the bar of a job; a job's end fills it."""
        if name not in self.bars:
            self.bars[name] = self.progress.add_task(name, total=total or None)
            return
        bar = self.progress.tasks[self.bars[name]]
        if total == 1 and done == 1:
            total = done = int(bar.total or 1)
        self.progress.update(bar.id, completed=done, total=total or None)


class Lines:
    """A line when a job starts, at each quarter of it, and when it ends."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began: dict[str, float] = {}
        self.quarters: dict[str, int] = {}

    def update(self, name: str, done: int, total: int) -> None:
        """Print what is new."""
        if name not in self.began:
            self.began[name], self.quarters[name] = monotonic(), 0
            self.console.print(f"{name}: started")
            return
        quarter = 4 * done // total if total else 0
        if quarter > self.quarters[name] and total:
            self.quarters[name] = quarter
            seconds = monotonic() - self.began[name]
            self.console.print(f"{name}: {'done' if quarter == 4 else f'{25 * quarter} %'}, {seconds:.0f} s")
