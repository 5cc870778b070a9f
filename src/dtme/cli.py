"""The command line: `dtme demo`, `dtme bench`."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from dtme._files import write_text
from dtme.bench import jobs
from dtme.bench.display import shown
from dtme.bench.experiment import Bench
from dtme.bench.lines import write_lines
from dtme.bench.methods import METHODS, method_of
from dtme.bench.recipe import PLATEAU, TRANSFER
from dtme.bench.results import collect, seconds_before, write_report
from dtme.bench.rows import jobs_of
from dtme.bench.table import markdown, table

PAPER = ("ST", "MT", "TM", "TE", "TM+TE")
"""What `dtme bench` compares unless told otherwise."""

REGIMES = {"transfer": TRANSFER, "plateau": PLATEAU}


def demo(out: Path = Path("runs/demo")) -> None:
    """Rendered rooms, four tasks: single-task, plain multi-task and TM+TE, in about five minutes on two cores.

    Args:
        out: Folder of the results. What is finished there is used again.
    """
    one = Bench("scenes", TRANSFER, out)
    runs = _run([one], ("ST", "MT", "TM+TE"), out)
    page = write_report(one, runs[0], ("ST", "MT", "TM+TE"))
    Console().print(f"{runs[0]['seconds']:.0f} s. Open {page}")


def bench(
    suite: Annotated[Literal["scenes", "nuclei"], tyro.conf.Positional],
    data: Path | None = None,
    regime: Literal["transfer", "plateau"] = "transfer",
    methods: tuple[str, ...] = PAPER,
    seeds: tuple[int, ...] = (0,),
    steps: int | None = None,
    out: Path | None = None,
) -> None:
    """Train the rows of a suite, for each seed, and print its table.

    Args:
        suite: `scenes` is rendered; `nuclei` reads real microscopy from `--data`.
        data: Archive or folder of the suite's data.
        regime: `transfer`: a trunk that knows the tasks meets new images; `plateau`: a small trunk at its end.
        methods: Rows of the table; ST and MT are added, as the others are held against them. A wrong name lists all.
        seeds: Of first weights and data order; every method runs once per seed, and is compared within seeds.
        steps: Training steps of each row, if not the recipe's.
        out: Folder of the results, by default runs/SUITE-REGIME. What is finished there is used again.
    """
    recipe = REGIMES[regime]
    if steps is not None:
        recipe = replace(recipe, steps=steps, expand_at=min(recipe.expand_at, steps // 10))
    for name in methods:
        method_of(name)
    wanted = tuple(method.name for method in METHODS if method.name in (*methods, "ST", "MT"))
    folder = out or Path("runs") / f"{suite}-{regime}"
    every = [Bench(suite, recipe, folder / f"seed-{seed}", data, seed) for seed in dict.fromkeys(seeds)]
    if not every:
        raise ValueError("seeds: give at least one whole number.")
    runs = _run(every, wanted, folder)
    page = write_report(every[0], runs[0], wanted)
    Console().print(f"Rows: {folder / 'results.jsonl'}. Seed {every[0].seed} in pictures: {page}")


def _run(benches: Sequence[Bench], methods: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Do what is not done yet, write the lines and the table, and print it."""
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file has no width to fit
    began = time.monotonic()
    work = {
        job.name: job
        for bench in benches
        for job in jobs_of(bench, methods, f"seed {bench.seed}: " if len(benches) > 1 else "")
    }
    with shown(console) as display:
        jobs.run(list(work.values()), display)
    command = shlex.join(["dtme", *sys.argv[1:]])
    spent = time.monotonic() - began
    runs = [
        collect(bench, methods, command=command, seconds=spent if work else seconds_before(bench)) for bench in benches
    ]
    write_lines(folder / "results.jsonl", runs)
    write_text(folder / "table.md", markdown(runs))
    console.print(table(runs))
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `dtme`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain kill, too, ends the workers
    try:
        tyro.extras.subcommand_cli_from_dict({"demo": demo, "bench": bench}, prog="dtme", args=arguments)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Finished rows are kept: the same command goes on from there.")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"dtme: {error}")
