"""What all rows of a table begin with: a trunk, or a whole model at its plateau, trained on all tasks together."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace

from torch import Tensor

from experiments.dense.backbones.recipe import BackboneRecipe
from experiments.dense.experiment import Bench
from experiments.dense.model import build
from experiments.dense.recipe import PRETRAINING
from experiments.dense.suite import Split
from experiments.dense.training import begin
from experiments.runner.cache import cached
from experiments.runner.jobs import Report
from experiments.runner.seeds import hash_of
from experiments.training.unfinished import forget, train_to_end

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
    bench.write_row("start", {})


def start_of(bench: Bench, report: Report) -> dict[str, Tensor]:
    """The weights that rows begin with, from the cache where they have been trained before.

    Of a trunk alone, the same for all seeds, or of a whole model at its plateau, one per seed: `Recipe.start`. Of a trunk that
    comes with weights nothing is trained.
    """
    if isinstance(bench.recipe, BackboneRecipe):
        from experiments.dense.backbones.weights import first_weights

        return first_weights(bench.recipe)
    suite = bench.load()
    assert isinstance(suite.pretrain, Split)
    recipe = replace(bench.recipe, row_rate=1.0, head_rate=bench.recipe.first_head_rate)
    whole = recipe.start == "plateau"
    seed = bench.seed if whole else PRETRAINING
    shape = {name: value for name, value in asdict(recipe).items() if name not in (*_OF_ROWS, "first_head_rate")}
    images = hashlib.sha256(suite.pretrain.images.numpy().tobytes()).hexdigest()
    key = f"{bench.suite}-{hash_of(shape, bench.loss_weights, images, seed):012x}"

    def made() -> dict[str, Tensor]:
        model, order = build(suite.tasks, recipe, seed), hash_of(seed, "start") if whole else seed
        run = begin(model, suite.tasks, suite.pretrain, recipe, seed=order, steps=recipe.pretrain_steps)
        train_to_end(bench, f"start {key}", run, report)
        return {name: weight for name, weight in model.state_dict().items() if whole or name.startswith("trunk.")}

    found = cached(f"start/{key}", made)
    forget(bench, f"start {key}")
    return found
