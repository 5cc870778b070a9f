"""What a step on a batch of several tasks costs against a step on one batch per task, with the same sentences in both.

    python benchmarks/mixed_batches.py [DATA] [TURNS]

Prints the median ratio of the times, taken in turns: forward, backward and update of MiniLM, by what is inserted.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

import dtme
from experiments.commands.run_all import fast_precision
from experiments.text import Batch, Run, TextRecipe, begin, build, insert, load, objective
from experiments.text.data.batches import batches
from experiments.text.glue import glue_task, read_glue

TASKS = tuple(glue_task(name) for name in ("CoLA", "MRPC", "STS-B", "RTE"))
NAMES = tuple(task.name for task in TASKS)
LAST = dict.fromkeys((f"trunk.encoder.layer.{block}" for block in range(3, 6)), NAMES)
PLANS = {
    "nothing": None,
    "TM+TE": dtme.Plan(NAMES, LAST, LAST),
    "rank 4": dtme.Plan(NAMES, adapt=LAST),
}


def seconds(run: Run, parts: list[Batch], rows: int) -> float:
    """A step on these batches together."""
    began = perf_counter()
    for part in parts:
        loss = objective(run.workload.losses(run.model, part), run.workload.suite, part)
        (loss * (len(part) / rows)).backward()
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return perf_counter() - began


def main(data: str = "../shared/data/glue", turns: str = "12") -> None:
    """Measure."""
    torch.set_num_threads(1)
    recipe = TextRecipe(precision=fast_precision("cpu"), cut=2000)
    suite = load(TASKS, partial(read_glue, Path(data)), recipe.trunk, cut=recipe.cut)
    print(f"{torch.get_num_threads()} thread, {recipe.precision}, {recipe.batch} rows, {len(TASKS)} tasks")
    for name, plan in PLANS.items():
        run = begin(build(recipe.trunk, TASKS, 0), suite, recipe)
        if plan is not None:
            insert(run, plan)
        run.model.train()
        ratios = []
        drawing = replace(run.workload.drawing, steps=int(turns) + 1)
        for batch in batches(suite, drawing):
            mixed = seconds(run, [batch], len(batch))
            apart = seconds(run, [batch.of_task(task) for task in batch.tasks.unique().tolist()], len(batch))
            ratios.append(apart / mixed)
        print(f"{name}: one batch per task takes {statistics.median(ratios[1:]):.2f} x the time of a mixed batch")


if __name__ == "__main__":
    main(*sys.argv[1:])
