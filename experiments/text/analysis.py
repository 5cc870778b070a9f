"""Where text tasks conflict: batches of one task each, so that it is known whose every sentence is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dtme.measure.analyze import analyze
from dtme.report.report import ConflictReport
from experiments.runner.seeds import hash_of
from experiments.text.data.suite import Batch, TextSuite
from experiments.text.recipe import TextRecipe
from experiments.text.training import task_losses
from experiments.training.divergence import check_finite


def analysis_batches(suite: TextSuite, recipe: TextRecipe, seed: int) -> list[Batch]:
    """Equally many training sentences of each task, in batches of one task, those of like length together."""
    made = []
    for place, task in enumerate(suite.tasks):
        data = suite.train[task.name]
        generator = torch.Generator().manual_seed(hash_of(seed, "analysis", task.name))
        rows = torch.randperm(len(data), generator=generator)[: recipe.analysis_samples]
        ordered = rows[data.lengths[rows].argsort(stable=True)]
        made += [suite.batch([(place, row) for row in own.tolist()]) for own in ordered.split(recipe.batch)]
    return made


def analyse(
    model: nn.Module,
    suite: TextSuite,
    recipe: TextRecipe,
    *,
    seed: int = 0,
    advance: Callable[[int, int], None] | None = None,
) -> ConflictReport:
    """`dtme.analyze` on training sentences of each task.

    Args:
        model: Without inserts.
        suite: Of the model.
        recipe: Says how many sentences, and r.
        seed: Of the choice of sentences.
        advance: Told the batches done, and all of them.

    Raises:
        DivergedError: A loss is not finite; names its task.
    """
    device = next(model.parameters()).device
    batches = [batch.to(device) for batch in analysis_batches(suite, recipe, seed)]
    done = 0

    def losses(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal done
        done += 1
        if advance is not None:
            advance(done, 2 * len(batches))
        found = task_losses(model, suite, batch, recipe.precision)
        check_finite(found, "in the analysis")
        return found

    return analyze(model, losses, batches, variance_ratio=recipe.variance_ratio, max_samples=None)
