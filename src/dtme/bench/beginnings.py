"""What all rows of a table begin with: a trunk, or a whole model at its plateau, trained on all tasks together."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace

from torch import Tensor

from dtme.bench.cache import cached
from dtme.bench.experiment import Bench, keep, path_of
from dtme.bench.jobs import Report
from dtme.bench.model import build, hash_of
from dtme.bench.recipe import PRETRAINING, Recipe
from dtme.bench.suite import Split
from dtme.bench.training import Run, optimiser, train
from dtme.bench.unfinished import read_again, write_down

KEPT_EVERY = 200
"""Steps after which an unfinished run is written down, so that it can go on from there."""

_OF_ROWS = (
    "steps",
    "expand_at",
    "analysis_batches",
    "row_rate",
    "insert_rate",
    "low_rank_rate",
    "insert_decay",
    "insert_warmup",
    "frozen_trunk",
    "fraction",
)
"""What of a recipe the weights that rows begin with do not depend on."""


def begin_all(bench: Bench, report: Report) -> None:
    """Train what all rows begin with, all tasks together."""
    start_of(bench, report)
    keep(bench, "start", {})


def start_of(bench: Bench, report: Report) -> dict[str, Tensor]:
    """The weights that rows begin with, from the cache where they have been trained before.

    Of a trunk alone, the same for all seeds, or of a whole model at its plateau, one per seed: `Recipe.start`.
    """
    suite = bench.load()
    recipe = replace(bench.recipe, row_rate=1.0, head_rate=bench.recipe.first_head_rate)
    whole = recipe.start == "plateau"
    seed = bench.seed if whole else PRETRAINING
    shape = {name: value for name, value in asdict(recipe).items() if name not in (*_OF_ROWS, "first_head_rate")}
    images = hashlib.sha256(suite.pretrain.images.numpy().tobytes()).hexdigest()
    key = f"{bench.suite}-{hash_of(shape, bench.loss_weights, images, seed):012x}"

    def made() -> dict[str, Tensor]:
        model = build(suite.tasks, recipe, seed)
        run = Run(model, suite.tasks, optimiser(model, recipe))
        seed_of_order = hash_of(seed, "start") if whole else seed
        train_on(bench, f"start {key}", run, suite.pretrain, recipe, seed_of_order, recipe.pretrain_steps, report)
        return {name: weight for name, weight in model.state_dict().items() if whole or name.startswith("trunk.")}

    return cached(f"start/{key}", made)


def train_on(
    bench: Bench, name: str, run: Run, split: Split, recipe: Recipe, seed: int, steps: int, report: Report
) -> None:
    """Train to the end, from where an interrupted run of the same settings was last written down.

    Args:
        bench: Where unfinished runs are kept.
        name: Of what is trained.
        run: Changed in place.
        split: What to train on.
        recipe: How.
        seed: Of the data order.
        steps: Length of the schedule, and its end.
        report: Told the steps done.
    """
    path = path_of(bench, name, "pt")
    kept = read_again(path, bench.settings())
    if kept is not None:
        run.restore(kept)
    while run.step < steps:
        until = min(steps, run.step + KEPT_EVERY)
        train(run, split, recipe, seed=seed, steps=steps, until=until, advance=lambda step: report(step, steps))
        if run.step < steps:
            write_down(path, bench.settings(), run.state())
    path.unlink(missing_ok=True)
