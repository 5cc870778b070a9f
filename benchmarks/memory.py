"""Peaks of memory: of the analysis and of streams against a training step.

python -m benchmarks.memory    # an analysis over a training step, by tasks and batch: the table of docs/scale.md
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import dtme
from benchmarks.clock import peak_bytes
from benchmarks.passes import published
from benchmarks.subject import CHANNELS, DEVICE, TASKS, Multitask, Size, last_half, step, task_losses

TASKS_AND_SAMPLES = ((4, 2), (4, 4), (4, 16), (6, 2), (6, 4), (6, 16), (8, 16), (11, 2), (11, 16))
FOUR = (2, 5, 8, 11)
"""Blocks that the heads of dense predictors read: after each quarter of twelve."""


class ReadingFourBlocks(Multitask):
    """Heads of two layers on the tokens of four blocks side by side, and so gradients that come to blocks from several sides."""

    def __init__(self, size: Size) -> None:
        super().__init__(size.trunk, size.pixels, size.tasks)
        width = self.trunk.embed_dim
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(nn.Linear(len(FOUR) * width, width), nn.GELU(), nn.Linear(width, CHANNELS))
                for task in size.tasks
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """What the four blocks give, through every head."""
        found = self.trunk.get_intermediate_layers(images, n=FOUR, return_prefix_tokens=True)
        tokens = torch.cat([torch.cat((prefix, own), 1) for own, prefix in found], -1)
        return {task: head(tokens) for task, head in self.heads.items()}


def with_tasks(size: Size, count: int) -> Size:
    """The same with as many tasks."""
    return replace(size, tasks=tuple(f"task-{place}" for place in range(count)))


def reading_four_blocks(size: Size) -> ReadingFourBlocks:
    """A model of some size whose heads read four blocks."""
    torch.manual_seed(0)
    return ReadingFourBlocks(size).eval().to(DEVICE)


def of_analysis(size: Size, model: nn.Module | None = None) -> float:
    """The peak of an analysis over that of a training step on the same batch."""
    model = size.model() if model is None else model
    batches = [size.batch(seed) for seed in range(2)]
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
    print("| tasks K | images a batch | heads read the last block | heads read four blocks |\n" + "| ---: " * 4 + "|")
    for tasks, samples in TASKS_AND_SAMPLES:
        size = with_tasks(Size(samples=samples), tasks)
        several = of_analysis(size, reading_four_blocks(size))
        print(f"| {tasks} | {samples} | {of_analysis(size):.2f} | {several:.2f} |", flush=True)


if __name__ == "__main__":
    main()
