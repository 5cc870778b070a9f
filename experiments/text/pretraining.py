"""What all rows of a seed begin with: the pretrained trunk with new heads, or both trained to their plateau on all tasks."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace

from torch import Tensor

from experiments.runner.cache import cached
from experiments.runner.jobs import Report
from experiments.runner.seeds import hash_of
from experiments.text.data.fingerprints import digest_of_trunk
from experiments.text.data.suite import TextSuite
from experiments.text.data.tasks import TextTask
from experiments.text.experiment import TextBench
from experiments.text.model import TextMultitask, build
from experiments.text.training import begin
from experiments.text.trunk import name_of
from experiments.training.unfinished import forget, train_to_end

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
        train_to_end(bench, "start", run, report)
        return {name: weight.cpu() for name, weight in model.state_dict().items()}

    numbers = {name: value for name, value in asdict(recipe).items() if name not in _OF_ROWS}
    numbers["trunk"] = name_of(recipe.trunk) + (digest_of_trunk(recipe.trunk) or "")
    sentences = hashlib.sha256()
    for task in suite.tasks:
        sentences.update(task.name.encode())
        for tensor in (suite.train[task.name].ids, suite.train[task.name].targets):
            sentences.update(tensor.numpy().tobytes())
    found = cached(f"start/{bench.suite}-{hash_of(numbers, sentences.hexdigest(), bench.seed):012x}", made)
    forget(bench, "start")
    return found
