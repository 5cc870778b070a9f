"""The rows of a table: what each method trains, from the shared trunk to the figures, one file each.

Every row starts from one trunk, sees the same batches in the same order, and runs for the same number of steps. The
rows that expand branch off the plain multi-task run at the step where conflicts are measured, with its weights, its
optimiser's state and its place in the schedule.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dtme._files import read_json, write_text, written_whole
from dtme.analysis import analyze
from dtme.apply import apply
from dtme.bench.cache import cached
from dtme.bench.jobs import Job, Report
from dtme.bench.model import MultiTaskViT, build, hash_of
from dtme.bench.recipe import PRETRAINING, Recipe
from dtme.bench.suite import Suite
from dtme.bench.training import Run, add_inserts, data_order, evaluate, optimiser, task_losses, train
from dtme.plan import Plan
from dtme.report import ConflictReport

Method = Literal["ST", "MT", "TM", "TE", "TM+TE"]
FORMAT = "dtme.row"

LOSS_WEIGHTS = {
    "scenes": {"semseg": 1.0, "depth": 1.0, "normals": 10.0, "edges": 50.0},
    "nuclei": {"mask": 1.0, "boundary": 50.0, "horizontal": 10.0, "vertical": 10.0},
}
"""Per suite, the weight of each task's loss: those in common use for the tasks of NYUD-v2, and their like for nuclei."""

_OF_ROWS = ("steps", "expand_at", "analysis_batches", "insert_rate", "fraction")
"""What of a recipe the shared trunk does not depend on."""


@dataclass(frozen=True)
class Bench:
    """One benchmark run: everything that its rows depend on.

    Attributes:
        suite: Name of the suite.
        data: Where its data is, if it needs any.
        recipe: Every number of the training.
        seed: Of data order and first weights.
        out: Folder of all results.
    """

    suite: Literal["scenes", "nuclei"]
    recipe: Recipe
    out: Path
    data: Path | None = None
    seed: int = 0

    def load(self, report: Report | None = None) -> Suite:
        """The suite with the weights of its losses, from the cache where it has been made before."""
        suite = self._data(report)
        weights = LOSS_WEIGHTS[self.suite]
        return replace(suite, tasks=tuple(replace(task, weight=weights[task.name]) for task in suite.tasks))

    def _data(self, report: Report | None) -> Suite:
        if self.suite == "nuclei":
            from dtme.bench import nuclei

            if self.data is None:
                raise ValueError("the suite 'nuclei' needs its data: --data FOLDER_OR_TAR.")
            return nuclei.suite(self.data, size=self.recipe.size, progress=report)
        from dtme.bench import scenes

        pretrain, train, test = self.recipe.images
        return scenes.suite(size=self.recipe.size, pretrain=pretrain, train=train, test=test, progress=report)

    def settings(self) -> dict[str, Any]:
        """What a finished row must have been made with to be used again."""
        recipe = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.recipe).items()}
        data = (
            None if self.data is None else [self.data.name, self.data.stat().st_size if self.data.is_file() else None]
        )
        return {
            "suite": self.suite,
            "data": data,
            "seed": self.seed,
            "recipe": recipe,
            "loss_weights": LOSS_WEIGHTS[self.suite],
        }


def jobs_of(bench: Bench, methods: Sequence[Method]) -> list[Job]:
    """The jobs of a benchmark run, the longest first among those that can start together; finished ones are left out."""
    data = _data_jobs(bench)
    ready = tuple(job.name for job in data)
    jobs = [
        *data,
        Job("shared trunk", pretrain, (bench,), after=ready),
        Job("MT, first steps", begin, (bench,), after=("shared trunk",)),
        *(Job(m, finish, (bench, m), after=("MT, first steps",)) for m in ("TM+TE", "TM", "TE", "MT") if m in methods),
        *(
            Job(f"ST {task}", single_task, (bench, task), after=("shared trunk",))
            for task in LOSS_WEIGHTS[bench.suite]
            if "ST" in methods
        ),
    ]
    done = {job.name for job in jobs if _is_done(bench, job.name)}
    return [
        Job(job.name, job.work, job.arguments, tuple(name for name in job.after if name not in done))
        for job in jobs
        if job.name not in done
    ]


def _data_jobs(bench: Bench) -> list[Job]:
    """Scenes are rendered by as many processes as there are splits; an archive is read by one."""
    if bench.suite == "nuclei":
        return [Job("nuclei", read, (bench,))]
    splits = zip(("pretrain", "train", "test"), bench.recipe.images, strict=True)
    return [Job(f"scenes, {split}", render, (bench, split, count)) for split, count in splits]


def read(bench: Bench, report: Report) -> None:
    """Make the suite's data, once."""
    bench.load(report)
    _finish(bench, bench.suite, {})


def render(bench: Bench, split: Literal["pretrain", "train", "test"], count: int, report: Report) -> None:
    """Render one split of the scenes, once."""
    from dtme.bench import scenes

    scenes.render_split(split, count, size=bench.recipe.size, progress=lambda done: report(done, count))
    _finish(bench, f"scenes, {split}", {})


def pretrain(bench: Bench, report: Report) -> None:
    """Train the trunk that all rows start from: all tasks together, on the pretraining split, heads thrown away."""
    trunk_of(bench, report)
    _finish(bench, "shared trunk", {})


def trunk_of(bench: Bench, report: Report) -> dict[str, Tensor]:
    """The weights of the shared trunk, from the cache where they have been trained before."""
    suite, recipe = bench.load(), bench.recipe

    def made() -> dict[str, Tensor]:
        model = build(suite.tasks, recipe, PRETRAINING)
        run = Run(model, suite.tasks, optimiser(model, recipe))
        steps = recipe.pretrain_steps
        train(
            run,
            suite.pretrain,
            recipe,
            seed=PRETRAINING,
            steps=steps,
            until=steps,
            advance=lambda step: report(step, steps),
        )
        return model.trunk.state_dict()

    shape = {name: value for name, value in asdict(recipe).items() if name not in _OF_ROWS}
    images = hashlib.sha256(suite.pretrain.images.numpy().tobytes()).hexdigest()
    return cached(f"trunk/{bench.suite}-{hash_of(shape, LOSS_WEIGHTS[bench.suite], images):012x}", made)


def begin(bench: Bench, report: Report) -> None:
    """The plain multi-task run up to the step of expansion, and the analysis there."""
    suite, recipe = bench.load(), bench.recipe
    model = build(suite.tasks, recipe, bench.seed, trunk_of(bench, report))
    run = Run(model, suite.tasks, optimiser(model, recipe))
    total = recipe.expand_at
    train(
        run,
        suite.train,
        recipe,
        seed=bench.seed,
        steps=recipe.steps,
        until=total,
        advance=lambda step: report(step, total),
    )
    began = time.perf_counter()
    order = data_order(len(suite.train), recipe.batch, recipe.analysis_batches, hash_of(bench.seed, "analysis"))
    batches = [suite.train.batch(rows) for rows in order]
    conflicts = analyze(model, lambda m, batch: task_losses(m, batch, suite.tasks), batches)
    seconds = time.perf_counter() - began
    conflicts.save(bench.out / "report.json")
    with written_whole(bench.out / "start.pt") as temporary:
        torch.save(run.state(), temporary)
    per_step = run.seconds / total if total else None
    _finish(
        bench,
        "MT, first steps",
        {"analysis_seconds": seconds, "analysis_steps": seconds / per_step if per_step else None},
    )


def finish(bench: Bench, method: Method, report: Report) -> None:
    """A multi-task row from the step of expansion to its figures."""
    suite, recipe = bench.load(), bench.recipe
    model = build(suite.tasks, recipe, bench.seed)
    run = Run(model, suite.tasks, optimiser(model, recipe))
    run.restore(torch.load(bench.out / "start.pt", weights_only=True))
    plan = plan_of_method(bench, method)
    if plan is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_of(bench.seed, method))
            apply(model, plan)
        add_inserts(run.made, model, recipe)
    _to_the_end(bench, method, suite, run, report)


def single_task(bench: Bench, task: str, report: Report) -> None:
    """The single-task row of one task."""
    suite, recipe = bench.load(), bench.recipe
    own = tuple(t for t in suite.tasks if t.name == task)
    model = build(own, recipe, bench.seed, trunk_of(bench, report))
    _to_the_end(bench, f"ST {task}", suite, Run(model, own, optimiser(model, recipe)), report)


def plan_of_method(bench: Bench, method: Method) -> Plan | None:
    """The plan a method applies, from the report of the analysis."""
    if method in ("ST", "MT"):
        return None
    conflicts = ConflictReport.load(bench.out / "report.json")
    return conflicts.plan(
        fraction=bench.recipe.fraction, modulation=method in ("TM", "TM+TE"), expansion=method in ("TE", "TM+TE")
    )


def trained(bench: Bench, name: str) -> MultiTaskViT:
    """The model of a finished row."""
    suite = bench.load()
    if name.startswith("ST "):
        own = tuple(task for task in suite.tasks if task.name == name.removeprefix("ST "))
        model = build(own, bench.recipe, bench.seed)
    else:
        model = build(suite.tasks, bench.recipe, bench.seed)
        plan = plan_of_method(bench, name)  # pyright: ignore[reportArgumentType]
        if plan is not None:
            apply(model, plan)
    model.load_state_dict(load_file(_path(bench, name, "safetensors")))
    return model


def figures(bench: Bench, name: str) -> dict[str, Any]:
    """What a finished row left: metrics, curves, seconds.

    Raises:
        ValueError: The file is not one of these.
    """
    path = _path(bench, name, "json")
    return read_json(path.read_text(encoding="utf-8"), FORMAT, str(path))


def _to_the_end(bench: Bench, name: str, suite: Suite, run: Run, report: Report) -> None:
    recipe = bench.recipe
    steps = recipe.steps
    train(
        run,
        suite.train,
        recipe,
        seed=bench.seed,
        steps=steps,
        until=steps,
        advance=lambda step: report(step, steps),
    )
    metrics = evaluate(run.model, suite.test, run.tasks)
    path = _path(bench, name, "safetensors")
    with written_whole(path) as temporary:
        save_file(run.model.state_dict(), temporary)
    _finish(bench, name, {"metrics": metrics, "curves": run.curves, "seconds": run.seconds})


def _path(bench: Bench, name: str, suffix: str) -> Path:
    return bench.out / "rows" / f"{name.replace(' ', '-').replace(',', '')}.{suffix}"


def _finish(bench: Bench, name: str, found: dict[str, Any]) -> None:
    data = {"format": FORMAT, "version": 1, "settings": bench.settings(), **found}
    write_text(_path(bench, name, "json"), json.dumps(data, indent=1) + "\n")


def _is_done(bench: Bench, name: str) -> bool:
    """Whether a row was finished before, with the same settings."""
    try:
        return figures(bench, name)["settings"] == bench.settings()
    except (OSError, ValueError):
        return False
