"""The commands `python -m experiments bench nyud | nyud13 | pascal_context | taskonomy`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from experiments.commands.disk_options import ModelOptions, RunOptions, TrainingOptions, benches_of, recipe_of
from experiments.commands.run_dense import run_rows
from experiments.dense.checking import check_before_run
from experiments.dense.disk_bench import DiskBench, open_suite
from experiments.dense.nyud.suite import NyudChoices
from experiments.dense.nyud13.suite import Nyud13Choices
from experiments.dense.on_disk import SUITES
from experiments.dense.pascal_context.suite import PascalChoices
from experiments.dense.taskonomy.suite import TaskonomyChoices
from experiments.runner.processes import joined, place
from experiments.runner.progress import shown
from experiments.runs.by_name import every_method, method_of
from experiments.runs.collect import write_report

Flat = tyro.conf.arg(name="")
"""Options that are not behind a name of their own."""
Model = Annotated[ModelOptions, Flat]
Training = Annotated[TrainingOptions, Flat]
Run = Annotated[RunOptions, Flat]
MODEL, TRAINING = ModelOptions(), TrainingOptions()


def nyud(
    run: Run,
    choices: Annotated[NyudChoices, Flat] = NyudChoices(),  # noqa: B008
    model: Model = MODEL,
    training: Training = TRAINING,
) -> None:
    """NYUD-v2 with 40 classes: segmentation, depth, normals, edges, at 448 x 576 by padding."""
    bench("nyud", run, choices, model, training)


def nyud13(
    run: Run,
    choices: Annotated[Nyud13Choices, Flat] = Nyud13Choices(),  # noqa: B008
    model: Model = MODEL,
    training: Training = TRAINING,
) -> None:
    """The 13-class NYUv2 of MTAN at 288 x 384: segmentation, depth, normals. Its numbers say nothing about nyud."""
    bench("nyud13", run, choices, model, training)


def pascal_context(
    run: Run,
    choices: Annotated[PascalChoices, Flat] = PascalChoices(),  # noqa: B008
    model: Model = MODEL,
    training: Training = TRAINING,
) -> None:
    """PASCAL-Context: segmentation, parts of people, saliency, normals, edges, at 512 x 512 by padding."""
    bench("pascal_context", run, choices, model, training)


def taskonomy(
    run: Run,
    choices: Annotated[TaskonomyChoices, Flat] = TaskonomyChoices(),  # noqa: B008
    model: Model = MODEL,
    training: Training = TRAINING,
) -> None:
    """Taskonomy with eleven tasks, at 256 x 256."""
    bench("taskonomy", run, choices, model, training)


def bench(suite: str, run: RunOptions, choices: Any, model: ModelOptions, training: TrainingOptions) -> None:
    """Check what can be checked, then train the rows that are not finished, and print their table.

    Args:
        suite: Name of the suite.
        run: Which rows, and where.
        choices: Of the suite's class of choices.
        model: The trunk and what stands behind it.
        training: Of every row.

    Raises:
        DataError: The data is not fit for a run.
        ValueError: An option is out of range, or does not fit another.
    """
    for name in run.methods:
        method_of(name)
    wanted = tuple(method.name for method in every_method() if method.name in (*run.methods, "ST", "MT"))
    folder = run.out or Path("runs") / f"{suite}-{model.backbone}"
    with joined(run.reading().device) as device:
        benches = checked(suite, replace(run, device=device), choices, model, training, folder)
        if run.dry_run:
            from experiments.commands.dry_run import dry_run

            dry_run(benches[0], wanted, run.dry_steps, folder)
            return
        runs = run_rows(benches, wanted, folder, here=True, command=_typed(run, model, folder))
        if runs:
            page = write_report(benches[0], runs[0], wanted)
            Console().print(f"Rows: {folder / 'results.jsonl'}. Seed {benches[0].seed} in pictures: {page}")


def checked(
    suite: str, run: RunOptions, choices: Any, model: ModelOptions, training: TrainingOptions, folder: Path
) -> list[DiskBench]:
    """One benchmark run per seed, once it is sure that data, model and weights are what a run needs.

    Raises:
        DataError: As of `bench`.
        ValueError: As of `bench`.
    """
    from experiments.dense.backbones.weights import first_weights

    if not run.seeds:
        raise ValueError("seeds: give at least one whole number.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={str(folder)!r} is a file: give a folder for the results.")
    if run.dry_steps < 1:
        raise ValueError(f"dry_steps={run.dry_steps}: give a number above 0.")
    console = Console(quiet=place()[0] > 0)
    with shown(console) as display:
        data = open_suite(
            suite, run.data, choices, run.seeds[0], lambda done, total: display.update("listing", done, total)
        )
        display.update("check", 0, 0)
        check_before_run(SUITES[suite], data, run.data, choices).require()
        display.update("check", 1, 1)
    if len(data.tasks) < 2:
        raise ValueError(f"tasks={tuple(task.name for task in data.tasks)}: multi-task training needs at least two.")
    recipe = recipe_of(suite, data.size, model, training)
    if recipe.batch > len(data.train):
        raise ValueError(f"batch={recipe.batch}: there are {len(data.train)} images to train on. Give at most that.")
    if recipe.batch % place()[1]:
        raise ValueError(f"batch={recipe.batch}: {place()[1]} processes get no equal part. Give a multiple.")
    first_weights(recipe)
    benches = benches_of(suite, run, choices, recipe, folder)
    benches[0].load()
    return benches


def _typed(run: RunOptions, model: ModelOptions, folder: Path) -> str:
    """The command as it was typed, folders by their last name: where they are is nobody's concern."""
    places = (str(run.data), str(folder), *([model.weights] if Path(model.weights).is_file() else []))
    shown = {place: Path(place).name for place in places}
    return shlex.join(["python", "-m", "experiments", *(shown.get(part.rstrip("/"), part) for part in sys.argv[1:])])


def main(arguments: Sequence[str]) -> None:
    """The command `bench` of a suite on disk.

    Args:
        arguments: What follows `bench`, the suite's name first.
    """
    commands = {"nyud": nyud, "nyud13": nyud13, "pascal_context": pascal_context, "taskonomy": taskonomy}
    tyro.cli(commands[arguments[0]], prog=f"python -m experiments bench {arguments[0]}", args=list(arguments[1:]))
