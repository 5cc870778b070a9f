"""Run the rows of some seeds of a dense suite: do what is not done yet, write lines and table, print them."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dtme._files import write_text
from experiments.dense.experiment import Bench
from experiments.dense.pretraining import begin_all
from experiments.runner import jobs
from experiments.runner.jsonl import write_lines
from experiments.runner.processes import place, wait
from experiments.runner.progress import shown
from experiments.runs.collect import collect, seconds_before
from experiments.runs.schedule import jobs_of
from experiments.tables.table import markdown, table


def run_rows(
    benches: Sequence[Bench],
    methods: Sequence[str],
    folder: Path,
    name: str = "results",
    *,
    here: bool = False,
    command: str | None = None,
) -> list[dict[str, Any]]:
    """Do what is not done yet, write the lines and the table, and print it.

    Args:
        benches: One per seed.
        methods: Names of the rows.
        folder: Of the results.
        name: Of the file of lines; the table of `results` is `table.md`.
        here: One row after another in this process, rather than as many side by side as there are cores.
        command: What was typed; by default what the process was called with.

    Returns:
        The results, one per seed; of several processes in the first one alone.
    """
    rank, _ = place()
    console = Console(quiet=rank > 0)
    if not console.is_terminal:
        console.width = 200  # a file has no width to fit
    began = time.monotonic()
    work = {
        job.name: job
        for bench in benches
        for job in jobs_of(bench, methods, f"seed {bench.seed}: " if len(benches) > 1 else "")
    }
    longest_first = sorted(
        work.values(), key=lambda job: job.work is not begin_all
    )  # what rows begin with takes longest
    wait()  # until all have seen what is finished
    with shown(console) as display:
        (jobs.run_here if here else jobs.run)(longest_first, display)
    if rank > 0:
        return []
    command = command or shlex.join(["python", "-m", "experiments", *sys.argv[1:]])
    spent = time.monotonic() - began
    runs = [
        collect(bench, methods, command=command, seconds=spent if work else seconds_before(bench)) for bench in benches
    ]
    write_lines(folder / f"{name}.jsonl", runs)
    write_text(folder / ("table.md" if name == "results" else f"{name}.md"), markdown(runs))
    console.print(table(runs))
    return runs
