"""Which sentences a step sees: a function of the seed and the step alone, so that runs resume and rows pair.

Tasks are drawn by a sampler. A task's own sentences come in epochs, shuffled by the seed and the task's name, so that a model
of one task sees the same ones in the same order as a model of all. Within a pool of steps sentences are sorted by length
before they are cut into batches: they are then padded little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dtme._shapes import Int
from experiments.runner.seeds import hash_of
from experiments.text.data.samplers import Sampler, task_order
from experiments.text.data.suite import Batch, TextSuite

Row = tuple[int, int]
"""A sentence: the index of its task and its own."""


@dataclass(frozen=True)
class Drawing:
    """How batches are drawn.

    Attributes:
        sampler: How often each task is.
        batches: `"mixed"`: every row has a task of its own; `"homogeneous"`: a batch holds sentences of one task.
        batch: Rows of a batch, in each process.
        steps: Of the run, for samplers that change on its way.
        seed: Of everything that is drawn.
        temperature: Of the sampler of that name.
        pool: Steps whose sentences are sorted by length together.
        world: Processes, each of which takes its part of every batch; all see the same tasks.
        rank: This process.
    """

    sampler: Sampler = "square root"
    batches: Literal["mixed", "homogeneous"] = "mixed"
    batch: int = 32
    steps: int = 1000
    seed: int = 0
    temperature: float = 10.0
    pool: int = 16
    world: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "pool", "world"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1.")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank={self.rank}: there are the ranks 0 to {self.world - 1}.")


def batches(suite: TextSuite, drawing: Drawing, *, start: int = 0, until: int | None = None) -> Iterator[Batch]:
    """The batches of steps `start` to `until`, by default to the end of the run.

    Example:
        >>> from experiments.text.data.suite import Encoded
        >>> words = torch.arange(12, dtype=torch.int32)
        >>> six = Encoded(words, torch.zeros(12, dtype=torch.int8), torch.arange(0, 13, 2), torch.arange(6.0))
        >>> from experiments.text.data.tasks import number
        >>> suite = TextSuite((number("a"), number("b")), {"a": six, "b": six}, {}, {"a": (0, 1), "b": (0, 1)}, 0, False)
        >>> drawing = Drawing("round robin", batch=4, steps=3)
        >>> [batch.tasks.sort().values.tolist() for batch in batches(suite, drawing)]
        [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    until = drawing.steps if until is None else until
    for step, rows in enumerate(sentences(suite, drawing, until)):
        if step >= start:
            yield suite.batch(rows)


def sentences(suite: TextSuite, drawing: Drawing, until: int) -> Iterator[Sequence[Row]]:
    """The sentences of every step from the first on, without reading them: what came before is cheap to go through again."""
    streams = [_Stream(task.name, size, drawing.seed) for task, size in zip(suite.tasks, suite.sizes(), strict=True)]
    lengths = [suite.train[task.name].lengths for task in suite.tasks]
    for first in range(0, until, drawing.pool):
        steps = min(drawing.pool, drawing.steps - first)
        order = _tasks_of_pool(suite, drawing, first, steps)
        rows = [[(int(task), streams[task].next()) for task in own] for own in order.tolist()]
        generator = torch.Generator().manual_seed(hash_of(drawing.seed, "pool", first))
        for own in _sorted_by_length(rows, lengths, drawing, generator)[: until - first]:
            yield own[drawing.rank :: drawing.world]


def drawn(suite: TextSuite, drawing: Drawing) -> list[int]:
    """How many sentences of each task a whole run sees, in all processes."""
    counts = torch.zeros(len(suite.tasks), dtype=torch.long)
    for first in range(0, drawing.steps, drawing.pool):
        order = _tasks_of_pool(suite, drawing, first, min(drawing.pool, drawing.steps - first))
        counts += order.flatten().bincount(minlength=len(counts))
    return counts.tolist()


@dataclass
class _Stream:
    """The sentences of one task, epoch after epoch."""

    name: str
    size: int
    seed: int
    place: int = 0
    order: list[int] = field(default_factory=list)

    def next(self) -> int:
        epoch, row = divmod(self.place, self.size)
        if row == 0:
            generator = torch.Generator().manual_seed(hash_of(self.seed, "epoch", self.name, epoch))
            self.order = torch.randperm(self.size, generator=generator).tolist()
        self.place += 1
        return self.order[row]


def _tasks_of_pool(suite: TextSuite, drawing: Drawing, first: int, steps: int) -> Int[Tensor, "steps rows"]:
    """The task of every row of a pool's steps."""
    rows = drawing.batch * drawing.world
    per_step = rows if drawing.batches == "mixed" else 1
    order = task_order(
        drawing.sampler,
        suite.sizes(),
        steps * per_step,
        drawing.seed,
        start=first * per_step,
        progress=first / drawing.steps,
        temperature=drawing.temperature,
    )
    return order.view(steps, per_step).expand(-1, rows) if per_step == 1 else order.view(steps, per_step)


def _sorted_by_length(
    rows: Sequence[Sequence[Row]], lengths: Sequence[Tensor], drawing: Drawing, generator: torch.Generator
) -> list[list[Row]]:
    """The pool's sentences, those of like length together; homogeneous batches stay so, and keep their order of tasks."""

    def length(row: Row) -> int:
        return int(lengths[row[0]][row[1]])

    if drawing.batches == "mixed":
        together = [list(range(len(rows)))]
    else:
        together = [[step for step, own in enumerate(rows) if own[0][0] == task] for task in range(len(lengths))]
    sorted_rows: list[list[Row]] = [[] for _ in rows]
    for steps in together:
        ordered = sorted((row for step in steps for row in rows[step]), key=length)
        places = torch.randperm(len(steps), generator=generator).tolist()
        size = drawing.batch * drawing.world
        for number, place in enumerate(places):
            sorted_rows[steps[place]] = ordered[number * size : (number + 1) * size]
    return sorted_rows
