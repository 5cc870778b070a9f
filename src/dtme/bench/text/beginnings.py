"""What all rows of a seed begin with: the pretrained trunk with new heads, or both trained to their plateau on all tasks."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace

from torch import Tensor

from dtme.bench.cache import cached
from dtme.bench.hashing import hash_of
from dtme.bench.jobs import Report
from dtme.bench.text.digests import digest_of_trunk
from dtme.bench.text.experiment import TextBench, path_of
from dtme.bench.text.model import TextMultitask, build
from dtme.bench.text.suite import TextSuite
from dtme.bench.text.tasks import TextTask
from dtme.bench.text.training import TextRun, begin, train
from dtme.bench.text.trunk import name_of
from dtme.bench.unfinished import read_again, write_down

KEPT_EVERY = 200
"""Steps after which an unfinished run is written down, so that it can go on from there."""

_OF_ROWS = (
    "steps",
    "row_rate",
    "expand_after",
    "analysis_samples",
    "variance_ratio",
    "insert_rate",
    "low_rank_rate",
    "copies_rate",
    "fraction",
    "rank",
)
"""What of a recipe the weights that rows begin with do not depend on."""


def beginning(bench: TextBench, suite: TextSuite, task: TextTask | None = None) -> TextMultitask:
    """The model that rows of a seed begin with, of all tasks or of one."""
    tasks = suite.tasks if task is None else (task,)
    model = build(bench.recipe.trunk, tasks, bench.seed, pooling=bench.recipe.pooling)
    if bench.recipe.start_steps:
        own = model.state_dict()
        kept = plateau(bench, suite, lambda done, total: None)
        model.load_state_dict({name: weight for name, weight in kept.items() if name in own})
    return model.to(bench.device)


def plateau(bench: TextBench, suite: TextSuite, report: Report) -> dict[str, Tensor]:
    """The weights of all tasks together at their plateau, from the cache where they have been trained before."""
    recipe = replace(bench.recipe, steps=bench.recipe.start_steps, row_rate=1.0)

    def made() -> dict[str, Tensor]:
        model = build(recipe.trunk, suite.tasks, bench.seed, pooling=recipe.pooling).to(bench.device)
        run = begin(model, suite, recipe, seed=hash_of(bench.seed, "start"))
        train_on(bench, "start", run, report)
        path_of(bench, "start", "pt").unlink(missing_ok=True)
        return {name: weight.cpu() for name, weight in model.state_dict().items()}

    numbers = {name: value for name, value in asdict(recipe).items() if name not in _OF_ROWS}
    numbers["trunk"] = name_of(recipe.trunk) + (digest_of_trunk(recipe.trunk) or "")
    sentences = hashlib.sha256()
    for task in suite.tasks:
        sentences.update(task.name.encode())
        for tensor in (suite.train[task.name].ids, suite.train[task.name].targets):
            sentences.update(tensor.numpy().tobytes())
    return cached(f"start/{bench.suite}-{hash_of(numbers, sentences.hexdigest(), bench.seed):012x}", made)


def train_on(bench: TextBench, name: str, run: TextRun, report: Report) -> None:
    """Train to the end, from where an interrupted run of the same settings was last written down.

    Args:
        bench: Where unfinished runs are kept.
        name: Of what is trained.
        run: Changed in place.
        report: Told the steps done.
    """
    path = path_of(bench, name, "pt")
    settings = {**bench.settings(), "steps": run.drawing.steps}  # a schedule may depend on the prices of other rows
    kept = read_again(path, settings)
    if kept is not None:
        run.restore(kept)
    while run.step < run.drawing.steps:
        train(run, min(run.drawing.steps, run.step + KEPT_EVERY), advance=report)
        if run.step < run.drawing.steps:
            write_down(path, settings, run.state())
