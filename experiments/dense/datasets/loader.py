"""Batches in an order that depends on a seed alone, read ahead by workers."""

from __future__ import annotations

import random
from collections.abc import Iterator

from torch.utils.data import DataLoader, Sampler

from experiments.dense.datasets.collate import Collate
from experiments.dense.datasets.dataset import DenseDataset

Key = tuple[int, int]
"""Epoch and number of an image."""


class EpochBatches(Sampler[list[Key]]):
    """The images of every training step, epoch after epoch of shuffled images; what does not fill a batch is dropped.

    A step's images are a function of the seed and the step: a run that begins at step `start` sees what a whole one sees there,
    and several processes share each batch out among them.

    Args:
        images: How many there are.
        batch: Images a step, of all processes together.
        steps: Where to end.
        seed: Of the order.
        start: Steps that are already done.
        rank: Of this process.
        processes: How many there are; each gets `batch / processes` images a step.

    Raises:
        ValueError: There are fewer images than a batch has, or the processes do not divide it.

    Example:
        >>> whole = list(EpochBatches(5, 2, steps=4, seed=1))
        >>> [epoch for (epoch, _), _ in whole]
        [0, 0, 1, 1]
        >>> list(EpochBatches(5, 2, steps=4, seed=1, start=3)) == whole[3:]
        True
    """

    def __init__(
        self, images: int, batch: int, *, steps: int, seed: int, start: int = 0, rank: int = 0, processes: int = 1
    ) -> None:
        if not 1 <= batch <= images:
            raise ValueError(f"batch={batch}: the split holds {images} images. Use a batch from 1 to that.")
        if batch % processes or not 0 <= rank < processes:
            raise ValueError(f"batch={batch}: process {rank} of {processes} gets no equal part. Use a multiple.")
        self.images, self.batch, self.steps, self.seed = images, batch, steps, seed
        self.start, self.rank, self.processes = start, rank, processes

    def __len__(self) -> int:
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch, own = self.images // self.batch, self.batch // self.processes
        epoch, order = -1, []
        for step in range(self.start, self.steps):
            if step // per_epoch != epoch:
                epoch, order = step // per_epoch, list(range(self.images))
                random.Random(f"{self.seed}/order/{epoch}").shuffle(order)
            first = step % per_epoch * self.batch + self.rank * own
            yield [(epoch, index) for index in order[first : first + own]]


class InOrder(Sampler[list[Key]]):
    """Every image once, in order, for whoever measures; the last batch may be smaller.

    Args:
        images: How many there are.
        batch: Images a step of one process.
        rank: Of this process.
        processes: How many there are; together they see every image once.

    Example:
        >>> [list(InOrder(5, 2, rank=rank, processes=2)) for rank in (0, 1)]
        [[[(0, 0), (0, 2)], [(0, 4)]], [[(0, 1), (0, 3)]]]
    """

    def __init__(self, images: int, batch: int, *, rank: int = 0, processes: int = 1) -> None:
        self.own = range(rank, images, processes)
        self.batch = batch

    def __len__(self) -> int:
        return -(-len(self.own) // self.batch)

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(0, len(self.own), self.batch):
            yield [(0, index) for index in self.own[first : first + self.batch]]


def load(
    dataset: DenseDataset, batches: Sampler[list[Key]], collate: Collate, *, workers: int = 0, pin: bool = False
) -> DataLoader:
    """The loader of these batches.

    Args:
        dataset: What is read.
        batches: Which images make a batch.
        collate: Stacks them.
        workers: Processes that read ahead; 0 reads in this one. Results are the same.
        pin: Put batches into memory that a GPU can fetch from while it computes.
    """
    ahead = {"prefetch_factor": 4, "persistent_workers": True, "multiprocessing_context": "spawn"} if workers else {}
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers, pin_memory=pin, **ahead)
