"""The command line: `dtme demo`, `dtme bench`, `dtme ablate`, `dtme probe`, `dtme tune`."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from dtme._files import write_text, written_whole
from dtme.bench import jobs
from dtme.bench.ablations import ablation_of
from dtme.bench.beginnings import begin_all
from dtme.bench.catalogue import every_method, method_of
from dtme.bench.display import shown
from dtme.bench.experiment import Bench
from dtme.bench.lines import write_lines
from dtme.bench.options import Options
from dtme.bench.pages import table_of
from dtme.bench.recipe import TRANSFER
from dtme.bench.results import collect, seconds_before, write_report
from dtme.bench.schedule import jobs_of
from dtme.bench.scores import block_scores, correlations
from dtme.bench.table import markdown, table
from dtme.bench.tuning import scores, settings_of, write

PAPER = ("ST", "MT", "TM", "TE", "TM+TE")
"""What `dtme bench` compares unless told otherwise."""

Given = Annotated[Options, tyro.conf.arg(name="")]
"""Options of a command that are not behind a name of their own."""
ONE_OF_TRANSFER = Options(tyro.MISSING, regime="transfer", seeds=(0,))
SOME_AT_THE_PLATEAU = Options(tyro.MISSING)
ONE_AT_THE_PLATEAU = Options(tyro.MISSING, seeds=(0,))


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
    given: Given = ONE_OF_TRANSFER, methods: tuple[str, ...] = PAPER, held_out: Literal["test", "val"] = "test"
) -> None:
    """Train the rows of a suite, for each seed, and print its table. Of text tasks: `dtme bench glue --help`.

    Args:
        given: Which runs.
        methods: Rows of the table; ST and MT are added, as the others are held against them. A wrong name lists all.
        held_out: What rows are measured on; `val` is for choosing settings.
    """
    for name in methods:
        method_of(name)
    folder = given.folder()
    benches = given.benches(folder, held_out)
    wanted = tuple(method.name for method in every_method() if method.name in (*methods, "ST", "MT"))
    runs = _run(benches, wanted, folder)
    page = write_report(benches[0], runs[0], wanted)
    Console().print(f"Rows: {folder / 'results.jsonl'}. Seed {benches[0].seed} in pictures: {page}")


def ablate(
    ablation: Annotated[str, tyro.conf.Positional],
    given: Given = SOME_AT_THE_PLATEAU,
    held_out: Literal["test", "val"] = "test",
) -> None:
    """Vary one thing, for each seed; print a table and draw the gains over MT.

    Args:
        ablation: What is varied. A wrong name lists all.
        given: Which runs; what `dtme bench` has finished in their folder is used again.
        held_out: As for `dtme bench`.
    """
    from dtme.bench.arms import draw

    chosen = ablation_of(ablation)
    folder = given.folder()
    wanted = ("ST", "MT", *(method.name for _, method in chosen.arms if method.name != "MT"))
    runs = _run(given.benches(folder, held_out), wanted, folder, name=f"ablation-{chosen.name}")
    Console().print(f"Figure: {draw(chosen, runs, folder / f'ablation-{chosen.name}.svg')}")


def probe(given: Given = SOME_AT_THE_PLATEAU) -> None:
    """Put one insert into one block at a time, and tell which score of the blocks ranks what it gains.

    Args:
        given: Which runs, as for `dtme ablate`.
    """
    from dtme.viz.score_correlations import score_correlations

    folder = given.folder()
    benches = given.benches(folder)
    kinds = {"low-rank updates": ablation_of("block-adapt"), "modulators": ablation_of("block-tm")}
    wanted = ("ST", "MT", *(method.name for ablation in kinds.values() for _, method in ablation.arms))
    runs = _run(benches, wanted, folder, name="probe")
    of_blocks = [block_scores(bench) for bench in benches]
    found = {
        kind: correlations(of_blocks, runs, [method.name for _, method in ablation.arms])
        for kind, ablation in kinds.items()
    }
    shared = {name: runs[0][name] for name in ("suite", "command", "versions", "hardware", "settings")}
    write_text(folder / "probe.json", json.dumps({**shared, "correlations": found}, indent=1) + "\n")
    with written_whole(folder / "probe.svg") as temporary:
        title = f"{given.suite}: which score tells where an insert helps"
        score_correlations(found, title).savefig(temporary, format="svg")
    for kind, own in found.items():
        Console().print(f"{kind}: " + ", ".join(f"{name} {value:+.2f}" for name, value in own.items()))
    Console().print(f"Figure: {folder / 'probe.svg'}")


def tune(given: Given = ONE_AT_THE_PLATEAU) -> None:
    """Train MT and ST under several learning rates of trunk and heads, and measure them on the validation split.

    Args:
        given: Which runs; by default their results are in runs/SUITE-REGIME-tuning.
    """
    folder = given.folder("-tuning")
    benches = [settings_of(bench) for bench in given.benches(folder, "val")]
    runs = {
        pair: _run([of[pair] for of in benches], ("ST", "MT"), folder, name="row-{:g}-head-{:g}".format(*pair))
        for pair in benches[0]
    }
    found = scores(runs)
    write(folder / "tuning.json", found, next(iter(runs.values()))[0])
    for line in found:
        Console().print("  ".join(f"{name} {value:+.2f}" for name, value in line.items()))


def _run(benches: Sequence[Bench], methods: Sequence[str], folder: Path, name: str = "results") -> list[dict[str, Any]]:
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
    longest_first = sorted(
        work.values(), key=lambda job: job.work is not begin_all
    )  # what rows begin with takes longest
    with shown(console) as display:
        jobs.run(longest_first, display)
    command = shlex.join(["dtme", *sys.argv[1:]])
    spent = time.monotonic() - began
    runs = [
        collect(bench, methods, command=command, seconds=spent if work else seconds_before(bench)) for bench in benches
    ]
    write_lines(folder / f"{name}.jsonl", runs)
    write_text(folder / ("table.md" if name == "results" else f"{name}.md"), markdown(runs))
    console.print(table(runs))
    return runs


def show_table(results: Annotated[Path, tyro.conf.Positional]) -> None:
    """Print the table of finished results as Markdown.

    Args:
        results: A file of JSON lines that `dtme bench` has written.
    """
    if not results.is_file():
        raise ValueError(
            f"results={str(results)!r} is no file: give the results.jsonl of a folder that dtme bench wrote."
        )
    print(table_of(results), end="")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `dtme`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain kill, too, ends the workers
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        if given[:2] == ["bench", "glue"]:  # text tasks have options of their own
            from dtme.bench.glue.command import glue

            tyro.cli(glue, prog="dtme bench glue", args=given[2:])
            return
        commands = {"demo": demo, "bench": bench, "ablate": ablate, "probe": probe, "tune": tune, "table": show_table}
        tyro.extras.subcommand_cli_from_dict(commands, prog="dtme", args=given)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Finished rows are kept: the same command goes on from there.")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"dtme: {error}")
