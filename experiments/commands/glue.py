"""The command `python -m experiments bench glue`."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from dtme._files import write_text
from experiments.commands.run_all import fast_precision, run_rows
from experiments.runner import jobs
from experiments.runner.progress import shown
from experiments.text.experiment import TextBench
from experiments.text.glue.hub import read_hub
from experiments.text.glue.tasks import TASKS, folders_in, glue_task, read_glue
from experiments.text.lr_search import Tunable, tune
from experiments.text.methods import METHODS, method_of
from experiments.text.recipe import TextRecipe

RECIPE = TextRecipe()
ROWS = tuple(method.name for method in METHODS)


def glue(
    data: Path | None = None,
    tasks: tuple[str, ...] = (),
    methods: tuple[str, ...] = ROWS,
    seeds: tuple[int, ...] = (0,),
    recipe: Annotated[TextRecipe, tyro.conf.arg(name="")] = RECIPE,
    tuned: tuple[Tunable, ...] = (),
    fast: bool = True,
    workers: int | None = None,
    device: str | None = None,
    out: Path = Path("runs/glue"),
) -> None:
    """Train rows on the tasks of GLUE, for each seed, and print one table.

    Args:
        data: Folder of the standard TSV folders, plain or gzip; without it the hub's `nyu-mll/glue` is read.
        tasks: Which tasks, by default all that are there.
        methods: Rows of the table. A wrong name lists all; ST and MT are added, as the others are held against them.
        seeds: Of data order, heads and dropout; every row runs once per seed, and is compared within seeds.
        recipe: Numbers of the training.
        tuned: What is tuned first, at a seed that no row has: learning rate and sampler by `MT`, single-task learning rates
            by each `ST` row, the rates of `inserts` by TM+TE, Adapt and own last block.
        fast: Use bfloat16 where the device computes in it.
        workers: Rows side by side, each on one core; by default one per core.
        device: Where models are trained; by default a GPU if there is one.
        out: Folder of the results. What is finished there is used again.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if fast and recipe.precision == "float32":
        recipe = replace(recipe, precision=fast_precision(chosen))
    known = list(folders_in(data)) if data is not None else [task.name for task in TASKS]
    named = [glue_task(name).name for name in tasks] or known
    for name in methods:
        method_of(name)
    wanted = tuple(name for name in ROWS if name in (*methods, "ST", "MT"))
    if not seeds:
        raise ValueError("seeds: give at least one whole number.")
    if len(set(named)) < 2:
        raise ValueError(f"tasks={named}: multi-task training needs at least two; there are {', '.join(known)}.")
    missing = [name for name in named if name not in known]
    if missing:
        raise FileNotFoundError(
            f"{data} has no folder {missing[0]}; it has {', '.join(known)}. Leave the task out, or fetch it."
        )
    read = read_hub if data is None else partial(read_glue, data.absolute())
    ordered = tuple(task for task in TASKS if task.name in named)
    first = TextBench("glue", ordered, read, recipe, out / "tuning", device=chosen)
    single: dict[str, float] = {}
    remarks: list[str] = []
    if tuned:
        found = tune(first, partial(_run_jobs, workers=workers), tuned)
        recipe, single, remarks = found.recipe, dict(found.single_rates), [found.remark()]
        write_text(out / "tuned.json", json.dumps(asdict(found), indent=1) + "\n")
    benches = [
        replace(first, recipe=recipe, out=out / f"seed-{seed}", seed=seed, single_rates=single)
        for seed in dict.fromkeys(seeds)
    ]
    run_rows(benches, wanted, out, command=_typed(data, recipe.trunk, out), workers=workers, remarks=remarks)
    Console().print(f"Rows: {out / 'results.jsonl'}")


def _run_jobs(work: Any, workers: int | None) -> None:
    with shown(Console()) as display:
        jobs.run(work, display, workers=workers)


def _typed(data: Path | None, trunk: str, out: Path) -> str:
    """The command as it was typed, folders by their last name: where they are is nobody's concern."""
    places = [place for place in (data, out, Path(trunk) if Path(trunk).is_dir() else None) if place is not None]
    folders = {str(place): place.name for place in places}
    return shlex.join(["python", "-m", "experiments", *(folders.get(part.rstrip("/"), part) for part in sys.argv[1:])])
