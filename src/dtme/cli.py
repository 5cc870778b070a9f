"""The command line: `dtme demo`, `dtme bench`, `dtme ablate`, `dtme probe`, `dtme tune`."""

from __future__ import annotations

import json
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

from dtme._files import write_text, written_whole
from dtme.bench import jobs
from dtme.bench.ablations import ablation_of
from dtme.bench.beginnings import begin_all
from dtme.bench.catalogue import every_method, method_of
from dtme.bench.display import shown
from dtme.bench.experiment import Bench
from dtme.bench.lines import write_lines
from dtme.bench.pages import table_of
from dtme.bench.recipe import PLATEAU, SETTLED, TRANSFER
from dtme.bench.results import collect, seconds_before, write_report
from dtme.bench.rows import jobs_of
from dtme.bench.scores import block_scores, correlations
from dtme.bench.table import markdown, table
from dtme.bench.tuning import scores, settings_of, write

PAPER = ("ST", "MT", "TM", "TE", "TM+TE")
"""What `dtme bench` compares unless told otherwise."""

REGIMES = {"transfer": TRANSFER, "plateau": PLATEAU, "settled": SETTLED}
Dense = Literal["scenes", "nuclei"]
Regime = Literal["transfer", "plateau", "settled"]


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
    suite: Annotated[Dense, tyro.conf.Positional],
    data: Path | None = None,
    regime: Regime = "transfer",
    methods: tuple[str, ...] = PAPER,
    seeds: tuple[int, ...] = (0,),
    steps: int | None = None,
    held_out: Literal["test", "val"] = "test",
    out: Path | None = None,
) -> None:
    """Train the rows of a suite, for each seed, and print its table. Of text tasks: `dtme bench glue --help`.

    Args:
        suite: `scenes` is rendered; `nuclei` reads real microscopy from `--data`.
        data: Archive or folder of the suite's data.
        regime: `transfer`: a trunk that knows the tasks meets new images; `plateau`: a small trunk at its end; `settled`: the
            same trunk, which then moves little.
        methods: Rows of the table; ST and MT are added, as the others are held against them. A wrong name lists all.
        seeds: Of first weights and data order; every method runs once per seed, and is compared within seeds.
        steps: Training steps of each row, if not the recipe's.
        held_out: What rows are measured on; `val` is for choosing settings.
        out: Folder of the results, by default runs/SUITE-REGIME. What is finished there is used again.
    """
    for name in methods:
        method_of(name)
    folder = out or Path("runs") / f"{suite}-{regime}"
    benches = _benches(suite, data, regime, seeds, steps, folder, held_out)
    wanted = tuple(method.name for method in every_method() if method.name in (*methods, "ST", "MT"))
    runs = _run(benches, wanted, folder)
    page = write_report(benches[0], runs[0], wanted)
    Console().print(f"Rows: {folder / 'results.jsonl'}. Seed {benches[0].seed} in pictures: {page}")


def ablate(
    ablation: Annotated[str, tyro.conf.Positional],
    suite: Annotated[Dense, tyro.conf.Positional],
    data: Path | None = None,
    regime: Regime = "plateau",
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int | None = None,
    held_out: Literal["test", "val"] = "test",
    out: Path | None = None,
) -> None:
    """Vary one thing, for each seed; print a table and draw the gains over MT.

    Args:
        ablation: What is varied. A wrong name lists all.
        suite: As for `dtme bench`.
        data: As for `dtme bench`.
        regime: As for `dtme bench`.
        seeds: As for `dtme bench`.
        steps: Training steps of each row, if not the recipe's.
        held_out: As for `dtme bench`.
        out: Folder of the results, by default runs/SUITE-REGIME, where `dtme bench` leaves its own: what is finished there is
            used again.
    """
    from dtme.bench.arms import draw

    chosen = ablation_of(ablation)
    folder = out or Path("runs") / f"{suite}-{regime}"
    wanted = ("ST", "MT", *(method.name for _, method in chosen.arms if method.name != "MT"))
    benches = _benches(suite, data, regime, seeds, steps, folder, held_out)
    runs = _run(benches, wanted, folder, name=f"ablation-{chosen.name}")
    Console().print(f"Figure: {draw(chosen, runs, folder / f'ablation-{chosen.name}.svg')}")


def probe(
    suite: Annotated[Dense, tyro.conf.Positional],
    data: Path | None = None,
    regime: Regime = "plateau",
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int | None = None,
    out: Path | None = None,
) -> None:
    """Put one insert into one block at a time, and tell which score of the blocks ranks what it gains.

    Args:
        suite: As for `dtme bench`.
        data: As for `dtme bench`.
        regime: As for `dtme bench`.
        seeds: As for `dtme bench`.
        steps: Training steps of each row, if not the recipe's.
        out: As for `dtme ablate`.
    """
    from dtme.viz.score_correlations import score_correlations

    folder = out or Path("runs") / f"{suite}-{regime}"
    benches = _benches(suite, data, regime, seeds, steps, folder, "test")
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
        score_correlations(found, f"{suite}: which score tells where an insert helps").savefig(temporary, format="svg")
    for kind, own in found.items():
        Console().print(f"{kind}: " + ", ".join(f"{name} {value:+.2f}" for name, value in own.items()))
    Console().print(f"Figure: {folder / 'probe.svg'}")


def tune(
    suite: Annotated[Dense, tyro.conf.Positional],
    data: Path | None = None,
    regime: Regime = "plateau",
    seeds: tuple[int, ...] = (0,),
    steps: int | None = None,
    out: Path | None = None,
) -> None:
    """Train MT and ST under several learning rates of trunk and heads, and measure them on the validation split.

    Args:
        suite: As for `dtme bench`.
        data: As for `dtme bench`.
        regime: As for `dtme bench`.
        seeds: As for `dtme bench`.
        steps: Training steps of each row, if not the recipe's.
        out: Folder of the results, by default runs/SUITE-REGIME-tuning.
    """
    folder = out or Path("runs") / f"{suite}-{regime}-tuning"
    benches = [settings_of(bench) for bench in _benches(suite, data, regime, seeds, steps, folder, "val")]
    runs = {
        pair: _run([of[pair] for of in benches], ("ST", "MT"), folder, name="row-{:g}-head-{:g}".format(*pair))
        for pair in benches[0]
    }
    found = scores(runs)
    write(folder / "tuning.json", found, next(iter(runs.values()))[0])
    for line in found:
        Console().print("  ".join(f"{name} {value:+.2f}" for name, value in line.items()))


def _benches(
    suite: Dense,
    data: Path | None,
    regime: Regime,
    seeds: Sequence[int],
    steps: int | None,
    folder: Path,
    held_out: Literal["test", "val"],
) -> list[Bench]:
    recipe = REGIMES[regime]
    if steps is not None:
        recipe = replace(recipe, steps=steps, expand_at=min(recipe.expand_at, steps // 10))
    if not seeds:
        raise ValueError("seeds: give at least one whole number.")
    return [Bench(suite, recipe, folder / f"seed-{seed}", data, seed, held_out) for seed in dict.fromkeys(seeds)]


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
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"dtme: {error}")
