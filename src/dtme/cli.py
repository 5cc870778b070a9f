"""The command line: `dtme demo`, `dtme bench`."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from dtme.bench import jobs
from dtme.bench.display import shown
from dtme.bench.recipe import Recipe
from dtme.bench.results import collect, seconds_before, write_report
from dtme.bench.rows import Bench, Method, jobs_of
from dtme.bench.table import markdown, table

ALL: tuple[Method, ...] = ("ST", "MT", "TM", "TE", "TM+TE")


def demo(out: Path = Path("runs/demo")) -> None:
    """Rendered rooms, four tasks: single-task, plain multi-task and TM+TE, in about five minutes on two cores.

    Args:
        out: Folder of the results. What is finished there is used again.
    """
    _run(Bench("scenes", Recipe(), out), ("ST", "MT", "TM+TE"))


def bench(
    suite: Annotated[Literal["scenes", "nuclei"], tyro.conf.Positional],
    data: Path | None = None,
    methods: tuple[Method, ...] = ALL,
    seed: int = 0,
    steps: int | None = None,
    out: Path | None = None,
) -> None:
    """Train the rows of a suite and print its table.

    Args:
        suite: `scenes` is rendered; `nuclei` reads real microscopy from `--data`.
        data: Archive or folder of the suite's data.
        methods: Rows of the table; ST and MT are added, as the others are held against them.
        seed: Of first weights and data order.
        steps: Training steps of each row, if not the recipe's.
        out: Folder of the results, by default runs/SUITE. What is finished there is used again.
    """
    recipe = Recipe() if steps is None else replace(Recipe(), steps=steps, expand_at=min(Recipe.expand_at, steps // 10))
    wanted: tuple[Method, ...] = tuple(method for method in ALL if method in (*methods, "ST", "MT"))
    _run(Bench(suite, recipe, out or Path("runs") / suite, data, seed), wanted)


def _run(bench: Bench, methods: Sequence[Method]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file has no width to fit
    began = time.monotonic()
    with shown(console) as display:
        missing = jobs_of(bench, methods)
        jobs.run(missing, display)
        results = collect(
            bench,
            methods,
            command=shlex.join(["dtme", *sys.argv[1:]]),
            seconds=time.monotonic() - began if missing else seconds_before(bench),
            progress=lambda done, total: display.update("cost", done, total),
        )
        page = write_report(bench, results, methods)
    (bench.out / "table.md").write_text(markdown(results), encoding="utf-8")
    console.print(table(results))
    console.print(f"{results['seconds']:.0f} s. Open {page}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `dtme`."""
    signal.signal(
        signal.SIGTERM, signal.getsignal(signal.SIGINT)
    )  # a plain kill, too, ends the workers and keeps what is done
    try:
        tyro.extras.subcommand_cli_from_dict({"demo": demo, "bench": bench}, prog="dtme", args=arguments)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Finished rows are kept: the same command goes on from there.")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"dtme: {error}")
