"""The rows of a table: what each method trains, from where all begin to the figures, one file each.

Every row of a seed begins with the same weights, sees the same batches in the same order and, unless it says otherwise,
runs for the same number of steps. The rows that insert branch off the plain multi-task run at the step where conflicts
are measured, with its weights, its optimiser's state and its place in the schedule.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dtme._files import written_whole
from dtme.analysis import analyze
from dtme.apply import apply
from dtme.bench.cache import cached
from dtme.bench.cost import costs
from dtme.bench.experiment import LOSS_WEIGHTS, Bench, figures, is_done, keep, path_of
from dtme.bench.jobs import Job, Report
from dtme.bench.methods import Method, method_of
from dtme.bench.model import build, hash_of
from dtme.bench.recipe import PRETRAINING
from dtme.bench.suite import Split, Suite
from dtme.bench.training import Run, add_inserts, add_own, data_order, evaluate, optimiser, task_losses, train
from dtme.plan import Plan
from dtme.report import ConflictReport

KEPT_EVERY = 1000
"""Steps after which an unfinished run is written down, so that it can go on from there."""

_OF_ROWS = ("steps", "expand_at", "analysis_batches", "insert_rate", "low_rank_rate", "fraction")
"""What of a recipe the weights that rows begin with do not depend on."""


def jobs_of(bench: Bench, methods: Sequence[str], label: str = "") -> list[Job]:
    """The jobs of one seed, the longest first among those that can start together; finished ones are left out.

    Args:
        bench: The seed.
        methods: Names of the rows.
        label: Put before the names of jobs, where several seeds run together.

    Raises:
        ValueError: A method is unknown.
    """
    wanted = [method_of(name) for name in methods]
    data = _data_jobs(bench)
    ready = tuple(job.name for job in data)
    inserting = [method for method in wanted if method.plan is not None]
    priced = [method for method in wanted if method.lasts is not None]
    jobs = [
        Job("start", begin_all, (bench,), after=ready),
        Job("MT, first steps", begin, (bench,), after=("start",)),
        Job("cost", price, (bench, tuple(methods)), after=("MT, first steps",)),
        *(Job(method.name, finish, (bench, method.name), after=("cost",)) for method in priced),
        *(Job(method.name, finish, (bench, method.name), after=("MT, first steps",)) for method in reversed(inserting)),
        *(
            Job(method.name, finish, (bench, method.name), after=("MT, first steps",))
            for method in wanted
            if method not in (*priced, *inserting) and method.name != "ST"
        ),
        *(
            Job(f"ST {task}", single_task, (bench, task), after=("start",))
            for task in LOSS_WEIGHTS[bench.suite]
            if any(method.name == "ST" for method in wanted)
        ),
    ]
    done = {job.name for job in jobs if is_done(bench, job.name)}
    if "cost" in done and set(methods) - figures(bench, "cost")["costs"].keys():
        done.discard("cost")
    missing = [job for job in jobs if job.name not in done]
    named = {job.name: label + job.name for job in jobs} | {name: name for name in ready}  # seeds share the data
    labelled = [
        Job(named[job.name], job.work, job.arguments, tuple(named[name] for name in job.after if name not in done))
        for job in missing
    ]
    return [*data, *labelled] if labelled else []


def _data_jobs(bench: Bench) -> list[Job]:
    """Scenes are rendered by as many processes as there are splits; an archive is read by one."""
    if bench.suite == "nuclei":
        return [Job("nuclei", read, (bench,))]
    splits = zip(("pretrain", "train", "test"), bench.recipe.images, strict=True)
    return [Job(f"scenes, {split}", render, (bench, split, count)) for split, count in splits]


def read(bench: Bench, report: Report) -> None:
    """Make the suite's data, once."""
    bench.load(report)


def render(bench: Bench, split: Literal["pretrain", "train", "test"], count: int, report: Report) -> None:
    """Render one split of the scenes, once."""
    from dtme.bench import scenes

    scenes.render_split(split, count, size=bench.recipe.size, progress=lambda done: report(done, count))


def begin_all(bench: Bench, report: Report) -> None:
    """Train what all rows begin with, all tasks together."""
    start_of(bench, report)
    keep(bench, "start", {})


def start_of(bench: Bench, report: Report) -> dict[str, Tensor]:
    """The weights that rows begin with, from the cache where they have been trained before.

    Of a trunk alone, the same for all seeds, or of a whole model at its plateau, one per seed: `Recipe.start`.
    """
    suite, recipe = bench.load(), bench.recipe
    whole = recipe.start == "plateau"
    seed = bench.seed if whole else PRETRAINING

    def made() -> dict[str, Tensor]:
        model = build(suite.tasks, recipe, seed)
        run = Run(model, suite.tasks, optimiser(model, recipe))
        seed_of_order = hash_of(seed, "start") if whole else seed
        _train_on(bench, "start", run, suite.pretrain, seed_of_order, recipe.pretrain_steps, report)
        return {name: weight for name, weight in model.state_dict().items() if whole or name.startswith("trunk.")}

    shape = {name: value for name, value in asdict(recipe).items() if name not in _OF_ROWS}
    images = hashlib.sha256(suite.pretrain.images.numpy().tobytes()).hexdigest()
    return cached(f"start/{bench.suite}-{hash_of(shape, LOSS_WEIGHTS[bench.suite], images, seed):012x}", made)


def begin(bench: Bench, report: Report) -> None:
    """The plain multi-task run up to the step of insertion, and the analysis there."""
    suite, recipe = bench.load(), bench.recipe
    model = build(suite.tasks, recipe, bench.seed, start_of(bench, report))
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
    order = data_order(len(suite.train), recipe.batch, recipe.analysis_batches, hash_of(bench.seed, "analysis"))
    batches = [suite.train.batch(rows) for rows in order]
    began = time.perf_counter()
    conflicts = analyze(model, lambda m, batch: task_losses(m, batch, suite.tasks), batches)
    seconds = time.perf_counter() - began
    conflicts.save(bench.out / "report.json")
    with written_whole(bench.out / "start.pt") as temporary:
        torch.save(run.state(), temporary)
    spare = Run(model, suite.tasks, optimiser(model, recipe))  # for the price of a step; its training is thrown away
    train(spare, suite.train, recipe, seed=0, steps=20, until=20, advance=lambda step: None)
    keep(
        bench,
        "MT, first steps",
        {"analysis_seconds": seconds, "analysis_steps": seconds / (spare.seconds / 20)},
    )


def price(bench: Bench, methods: Sequence[str], report: Report) -> None:
    """What a step and a pass of each method cost, taken in turns, and how many parameters it adds."""
    suite, recipe = bench.load(), bench.recipe
    wanted = {method.name: method for method in map(method_of, methods)}
    for method in list(wanted.values()):
        if method.lasts is not None:
            wanted.setdefault(method.lasts[0], method_of(method.lasts[0]))
    wanted.setdefault("MT", method_of("MT"))
    runs: dict[str, list[Run]] = {}
    for name, method in wanted.items():
        if name == "ST":
            models = [build((task,), recipe, bench.seed) for task in suite.tasks]
            runs[name] = [
                Run(model, (task,), optimiser(model, recipe)) for model, task in zip(models, suite.tasks, strict=True)
            ]
        elif method.lasts is None and method.longer == 1:  # else its steps are those of MT
            runs[name] = [run_of(bench, suite, method)]
    plain = _parameters(runs["MT"])
    found = costs(runs, suite.train, recipe, advance=report)
    priced = {name: asdict(found.get(name, found["MT"])) for name in wanted}
    added = {name: _parameters(runs[name]) - plain if name in runs and name != "ST" else 0 for name in wanted}
    keep(bench, "cost", {"costs": priced, "added": added})


def _parameters(runs: Sequence[Run]) -> int:
    return sum(p.numel() for run in runs for p in run.model.parameters())


def steps_of(bench: Bench, method: Method) -> int:
    """How long a method trains: as long as the others, so many times longer, or as long as another method's price allows."""
    recipe = bench.recipe
    if method.lasts is None:
        return round(recipe.steps * method.longer)
    other, currency = method.lasts
    costs_of_other = figures(bench, "cost")["costs"][other]
    per_step = costs_of_other["step" if currency == "time" else "step_flops"]
    analysis = figures(bench, "MT, first steps")["analysis_steps"]
    return round(recipe.expand_at + analysis + (recipe.steps - recipe.expand_at) * per_step)


def run_of(bench: Bench, suite: Suite, method: Method) -> Run:
    """A multi-task row at the step of insertion, with what the method changes in place."""
    recipe = bench.recipe
    if method.recipe is not None:  # of another shape: it cannot branch off, and begins with a start of its own
        wide = replace(bench, recipe=method.recipe(recipe))
        model = build(suite.tasks, wide.recipe, bench.seed, start_of(wide, lambda done, total: None))
        return Run(model, suite.tasks, optimiser(model, recipe))
    model = build(suite.tasks, recipe, bench.seed)
    run = Run(model, suite.tasks, optimiser(model, recipe))
    run.restore(torch.load(bench.out / "start.pt", weights_only=True))
    plan = plan_of_method(bench, method.name)
    if plan is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_of(bench.seed, method.name))
            apply(model, plan)
        add_inserts(run.made, model, recipe)
    if method.change is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_of(bench.seed, method.name))
            changed: Any = method.change(model, bench, suite)
        own = [parameter for _, parameter in changed.added_parameters()]
        rate = 1.0 if method.rate is None else getattr(recipe, method.rate)
        add_own(run.made, own, rate, recipe.weight_decay if method.rate is None else 0.0)
        run.model = changed
    if method.balance is not None:
        run.balancing = method.balance(suite, recipe, bench.seed)
        add_own(run.made, run.balancing.parameters(), recipe.head_rate, 0.0)
    return run


def finish(bench: Bench, name: str, report: Report) -> None:
    """A multi-task row from the step of insertion to its figures."""
    suite, method = bench.load(), method_of(name)
    _to_the_end(bench, name, suite, run_of(bench, suite, method), steps_of(bench, method), report)


def single_task(bench: Bench, task: str, report: Report) -> None:
    """The single-task row of one task."""
    suite, recipe = bench.load(), bench.recipe
    own = tuple(t for t in suite.tasks if t.name == task)
    model = build(own, recipe, bench.seed, start_of(bench, report))
    _to_the_end(bench, f"ST {task}", suite, Run(model, own, optimiser(model, recipe)), recipe.steps, report)


def plan_of_method(bench: Bench, name: str) -> Plan | None:
    """The plan a method applies, from the report of the analysis; `None` for one that inserts nothing."""
    method = method_of(name)
    if method.plan is None:
        return None
    return method.plan(ConflictReport.load(bench.out / "report.json"), bench.recipe, bench.seed)


def trained(bench: Bench, name: str) -> nn.Module:
    """The model of a finished row."""
    suite = bench.load()
    if name.startswith("ST "):
        own = tuple(task for task in suite.tasks if task.name == name.removeprefix("ST "))
        model: nn.Module = build(own, bench.recipe, bench.seed)
    else:
        model = run_of(bench, suite, method_of(name)).model
    model.load_state_dict(load_file(path_of(bench, name, "safetensors")))
    return model


def _to_the_end(bench: Bench, name: str, suite: Suite, run: Run, steps: int, report: Report) -> None:
    _train_on(bench, name, run, suite.train, bench.seed, steps, report)
    metrics = evaluate(run.model, suite.test, run.tasks)
    path = path_of(bench, name, "safetensors")
    with written_whole(path) as temporary:
        save_file(run.model.state_dict(), temporary)
    keep(bench, name, {"metrics": metrics, "curves": run.curves, "seconds": run.seconds, "steps": steps})


def _train_on(bench: Bench, name: str, run: Run, split: Split, seed: int, steps: int, report: Report) -> None:
    """Train to the end, from where an interrupted run of the same settings was last written down."""
    path = path_of(bench, name, "pt")
    kept = _unfinished(path, bench.settings())
    if kept is not None:
        run.restore(kept)
    while run.step < steps:
        train(
            run,
            split,
            bench.recipe,
            seed=seed,
            steps=steps,
            until=min(steps, run.step + KEPT_EVERY),
            advance=lambda step: report(step, steps),
        )
        if run.step < steps:
            with written_whole(path) as temporary:
                torch.save({"settings": json.dumps(bench.settings()), "run": run.state()}, temporary)
    path.unlink(missing_ok=True)


def _unfinished(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        kept = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return kept["run"] if json.loads(kept["settings"]) == json.loads(json.dumps(settings)) else None
