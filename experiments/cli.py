"""The study from the command line: `python -m experiments demo`, `bench`, `ablate`, `probe`, `tune`, `table` and `data`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from dtme._files import write_text, written_whole
from experiments.ablations import ablation_of
from experiments.commands.options import Options
from experiments.commands.run_dense import run_rows
from experiments.dense.data_command import main as check_data
from experiments.dense.experiment import Bench
from experiments.dense.on_disk import SUITES
from experiments.dense.recipe import FEW
from experiments.runner import jobs
from experiments.runs.block_scores import block_scores, correlations
from experiments.runs.by_name import every_method, method_of
from experiments.runs.collect import write_report
from experiments.runs.lr_search import scores, settings_of, write
from experiments.tables.doc_tables import table_of

PAPER = ("ST", "MT", "TM", "TE", "TM+TE")
"""What `python -m experiments bench` compares unless told otherwise."""

DEMO = ("ST", "MT", "MT, even gradients", "Adapt r12 last MLP, even gradients", "TM+TE")
"""The rows of README: the last but one is what `recommended` inserts, beside even weights."""

Given = Annotated[Options, tyro.conf.arg(name="")]
"""Options of a command that are not behind a name of their own."""
ONE_OF_TRANSFER = Options(tyro.MISSING, regime="transfer", seeds=(0,))
SOME_AT_THE_PLATEAU = Options(tyro.MISSING)
ONE_AT_THE_PLATEAU = Options(tyro.MISSING, seeds=(0,))


def demo(out: Path = Path("runs/demo")) -> None:
    """Rendered rooms, four tasks, few images and many epochs: the rows of README, in about five minutes on two cores.

    Args:
        out: Folder of the results. What is finished there is used again.
    """
    one = Bench("scenes", FEW, out)
    runs = run_rows([one], DEMO, out)
    page = write_report(one, runs[0], DEMO)
    console = Console()
    for note in runs[0]["notes"]:
        console.print(note, highlight=False)
    console.print(f"{runs[0]['seconds']:.0f} s. Open {page}")


def bench(
    given: Given = ONE_OF_TRANSFER, methods: tuple[str, ...] = PAPER, held_out: Literal["test", "val"] = "test"
) -> None:
    """Train the rows of a suite, for each seed, and print its table.

    Other suites have options of their own: `bench nyud --help`, `nyud13`, `pascal_context`, `taskonomy`, of images on disk;
    `bench glue --help`, of text.

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
    runs = run_rows(benches, wanted, folder)
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
        given: Which runs; what `python -m experiments bench` has finished in their folder is used again.
        held_out: As for `python -m experiments bench`.
    """
    from experiments.figures.ablation_arms import draw

    chosen = ablation_of(ablation)
    folder = given.folder()
    wanted = ("ST", "MT", *(method.name for _, method in chosen.arms if method.name != "MT"))
    runs = run_rows(given.benches(folder, held_out), wanted, folder, name=f"ablation-{chosen.name}")
    Console().print(f"Figure: {draw(chosen, runs, folder / f'ablation-{chosen.name}.svg')}")


def probe(given: Given = SOME_AT_THE_PLATEAU) -> None:
    """Put one insert into one block at a time, and tell which score of the blocks ranks what it gains.

    Args:
        given: Which runs, as for `python -m experiments ablate`.
    """
    from experiments.figures.score_correlations import score_correlations

    folder = given.folder()
    benches = given.benches(folder)
    kinds = {"low-rank updates": ablation_of("block-adapt"), "modulators": ablation_of("block-tm")}
    wanted = ("ST", "MT", *(method.name for ablation in kinds.values() for _, method in ablation.arms))
    runs = run_rows(benches, wanted, folder, name="probe")
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
        pair: run_rows([of[pair] for of in benches], ("ST", "MT"), folder, name="row-{:g}-head-{:g}".format(*pair))
        for pair in benches[0]
    }
    found = scores(runs)
    write(folder / "tuning.json", found, next(iter(runs.values()))[0])
    for line in found:
        Console().print("  ".join(f"{name} {value:+.2f}" for name, value in line.items()))


def show_table(results: Annotated[Path, tyro.conf.Positional]) -> None:
    """Print the table of finished results as Markdown.

    Args:
        results: A file of JSON lines that `python -m experiments bench` has written.
    """
    if not results.is_file():
        raise ValueError(
            f"results={str(results)!r} is no file: give the results.jsonl of a folder that python -m experiments bench wrote."
        )
    print(table_of(results), end="")


def data() -> None:
    """Find out whether data on disk is what a suite means, before anything is trained on it: `data check SUITE DIR`."""
    check_data(["--help"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what `python -m experiments` was asked to; `data check` ends with 1 where a run would fail."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain kill, too, ends the workers
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        if given[:2] == ["bench", "glue"]:  # text tasks have options of their own
            from experiments.commands.glue import glue

            tyro.cli(glue, prog="python -m experiments bench glue", args=given[2:])
            return
        if given[:1] == ["bench"] and given[1:2] and given[1] in SUITES:  # so have suites on disk
            from experiments.commands.bench_on_disk import main as bench_on_disk

            bench_on_disk(given[1:])
            return
        if given[:1] == ["data"]:
            if check_data(given[1:]):
                sys.exit(1)
            return
        commands = {
            "demo": demo,
            "bench": bench,
            "ablate": ablate,
            "probe": probe,
            "tune": tune,
            "table": show_table,
            "data": data,
        }
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m experiments", args=given)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Finished rows are kept: the same command goes on from there.")
    except (ValueError, OSError, ImportError, jobs.WorkerLostError) as error:
        sys.exit(f"experiments: {error}")
