"""Peaks of memory: of the analysis and of streams against a training step.

python -m benchmarks.memory    # an analysis over a training step, by tasks and batch: the table of docs/scale.md
"""

from __future__ import annotations

import copy
from functools import partial

import torch

import dtme
from benchmarks.clock import peak_bytes
from benchmarks.passes import published
from benchmarks.subject import TASKS, Size, last_half, step, task_losses

TASKS_AND_SAMPLES = ((4, 3), (4, 4), (4, 5), (4, 16), (6, 16), (8, 16), (11, 16))


def of_analysis(size: Size) -> float:
    """The peak of an analysis over that of a training step on the same batch."""
    model, batches = size.model(), [size.batch(seed) for seed in range(2)]
    analysis = peak_bytes(lambda: dtme.analyze(model, task_losses, batches))
    return analysis / peak_bytes(lambda: step(model, batches[0]))


def of_streams(size: Size) -> dict[str, float]:
    """The peak of a training step with K streams over the plain one, by where they part."""
    model, batch = size.model(), size.batch()
    plain = peak_bytes(lambda: step(model, batch))
    plans = {"from the first block": published(model), "from half way": dtme.Plan(TASKS, modulate=last_half(model))}
    return {
        where: peak_bytes(partial(step, dtme.apply(copy.deepcopy(model), plan), batch)) / plain
        for where, plan in plans.items()
    }


def main() -> None:
    """The peaks of an analysis of ViT-Ti on 112 pixels by those of a training step, as a table in Markdown."""
    torch.set_num_threads(1)
    print("| tasks K | images a batch | peak of analyze / of a training step |\n| ---: | ---: | ---: |")
    for tasks, samples in TASKS_AND_SAMPLES:
        size = Size(samples=samples, tasks=tuple(f"task-{place}" for place in range(tasks)))
        print(f"| {tasks} | {samples} | {of_analysis(size):.2f} |", flush=True)


if __name__ == "__main__":
    main()
