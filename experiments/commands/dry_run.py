"""A dry run: some steps of every kind of row, and from their time and memory what the whole table would take."""

from __future__ import annotations

import gc
import json
import resource
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from dtme._files import write_text
from dtme.attach.apply import apply
from dtme.report.report import ConflictReport
from experiments.dense.branch_point import analyse, fullest_batch, plain_run
from experiments.dense.disk_bench import DiskBench
from experiments.dense.methods import Method
from experiments.dense.model import build
from experiments.dense.pretraining import start_of
from experiments.dense.suite import Batch, Suite
from experiments.dense.training import add_inserts, begin, compiled, predict
from experiments.runner.environment import hardware, versions
from experiments.runner.processes import by_first, place
from experiments.runs.by_name import method_of
from experiments.training.run import Run, step

FORMAT = "dtme.dry-run"
NOT_TRIED = "not tried: it balances gradients or takes another model, whose price a run measures"


@dataclass(frozen=True)
class Tried:
    """What some steps of a row took.

    Attributes:
        step: Seconds of a step, the median; of ST the sum over its tasks.
        waiting: Seconds that a step waited for its images, a mean over all steps.
        memory: GB at most: of the GPU, or of this whole process where there is none.
        steps: How many steps were taken.
        hours: Of the whole row: its steps, its measurement, and the analysis where it needs one.
    """

    step: float
    waiting: float
    memory: float
    steps: int
    hours: float


def dry_run(bench: DiskBench, methods: Sequence[str], steps: int, folder: Path) -> dict[str, Tried | str]:
    """Take some steps of every kind of row, print what the table would take, and write it to `dry-run.json`.

    Args:
        bench: Of one seed; its data has been checked.
        methods: Names of the rows.
        steps: Of each row, besides one that warms up; of ST of each task a share of them.
        folder: Of the results.
    """
    suite, console = bench.load(), Console(quiet=place()[0] > 0)
    if not console.is_terminal:
        console.width = 200  # a file has no width to fit
    console.print(
        f"{suite.name}: {len(suite.train)} images to train on, {len(suite.test)} to measure on; "
        f"{bench.recipe.batch} of {bench.recipe.height_width[0]} x {bench.recipe.height_width[1]} a step."
    )
    start = start_of(bench, lambda done, total: None)
    batch = fullest_batch(bench, suite)
    model = plain_run(bench, suite, start).model
    analysis, report = _timed(partial(analyse, model, bench, suite, batches=[batch]))
    analysis *= bench.recipe.analysis_batches / 3600
    measuring = _measuring(model, suite, batch) / 3600
    del model
    found: dict[str, Tried | str] = {}
    for method in map(method_of, methods):
        console.print(f"{method.name} ...", end=" ")
        found[method.name] = _try(bench, suite, method, start, report, steps, analysis, measuring)
        console.print("" if isinstance(found[method.name], Tried) else str(found[method.name]))
    _show(console, bench, found, steps)
    told = {name: asdict(one) if isinstance(one, Tried) else one for name, one in found.items()}
    shared = {"format": FORMAT, "version": 1, "suite": suite.name, "choices": bench.choices}
    made = {"hardware": hardware(), "versions": versions(), "analysis_hours": analysis, "measuring_hours": measuring}
    by_first(lambda: write_text(folder / "dry-run.json", json.dumps({**shared, **made, "rows": told}, indent=1) + "\n"))
    return found


def _try(
    bench: DiskBench,
    suite: Suite,
    method: Method,
    start: Mapping[str, torch.Tensor],
    report: ConflictReport,
    steps: int,
    analysis: float,
    measuring: float,
) -> Tried | str:
    """Some steps of one row; its figures, or why there are none."""
    recipe = bench.recipe
    if method.name == "ST":
        few = max(1, steps // len(suite.tasks))
        each = []
        for task in suite.tasks:
            model = build((task,), recipe, bench.seed, start)
            each.append(_steps(begin(model, (task,), suite.train, recipe, seed=bench.seed), few))
            del model
        hours = sum(own.step for own in each) * recipe.steps / 3600 + len(each) * measuring
        return Tried(
            sum(own.step for own in each),
            sum(own.waiting for own in each),
            max(own.memory for own in each),
            few * len(each),
            hours,
        )
    if method.change is not None or method.balance is not None or method.lasts is not None or method.shape is not None:
        return NOT_TRIED
    run = plain_run(bench, suite, start)
    if method.plan is not None:
        apply(run.model, method.plan(report, recipe, bench.seed))
        add_inserts(run, recipe)
    own = _steps(run, steps)
    hours = own.step * recipe.steps * method.longer / 3600 + measuring
    hours += analysis if method.plan is not None or method.weights == "even" else 0.0
    return Tried(own.step, own.waiting, own.memory, steps, hours)


def _steps(run: Run, steps: int) -> Tried:
    """Steps of a run, the first of which warms up; what was held before does not count for its memory on a GPU."""
    device = run.workload.split.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run.model.train()
    taken, waited = [], []
    with compiled(run.model, run.workload.recipe):
        before = perf_counter()
        for batch in run.workload.batches(0, min(steps + 1, run.workload.steps)):
            _wait(device)
            read = perf_counter()
            step(run, batch)
            _wait(device)
            taken.append(perf_counter() - read)
            waited.append(read - before)
            before = perf_counter()
    few = slice(1, None) if len(taken) > 1 else slice(None)
    held = _memory(device)
    run.optimizer.state.clear()
    gc.collect()
    return Tried(statistics.median(taken[few]), statistics.fmean(waited[few]), held, len(taken[few]), 0.0)


def _measuring(model: torch.nn.Module, suite: Suite, batch: Batch) -> float:
    """Seconds that passes over the test split take, without the metrics."""
    images = batch["image"][:8]
    predict(model, images)
    seconds, _ = _timed(partial(predict, model, images))
    return seconds / len(images) * len(suite.test)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = perf_counter()
    made = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - began, made


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # kB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _show(console: Console, bench: DiskBench, found: Mapping[str, Tried | str], steps: int) -> None:
    where = "GPU" if bench.reading.device.startswith("cuda") else "process, so far"
    drawn = Table(
        title=f"{bench.suite}, {bench.recipe.steps:,} steps a row: extrapolated from {steps} steps of each",
        title_justify="left",
        box=box.SIMPLE,
    )
    for column in ("", "step, s", "waiting for images, s", f"GB ({where})", "row, h"):
        drawn.add_column(column, justify="right" if column else "left")
    tried = {name: one for name, one in found.items() if isinstance(one, Tried)}
    for name, one in tried.items():
        drawn.add_row(name, f"{one.step:.3f}", f"{one.waiting:.3f}", f"{one.memory:.1f}", f"{one.hours:.1f}")
    drawn.add_row("the whole table, one seed", "", "", "", f"{_total(tried.values()):.1f}", style="bold")
    console.print(drawn)
    console.print("Metrics, prices and pictures, which a run also makes, are not in these figures.", highlight=False)


def _total(tried: Iterable[Tried]) -> float:
    return sum(one.hours for one in tried)
