"""A split of images on disk as the engine takes one: read ahead by workers, changed by chance, put where the model is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from experiments.dense.datasets.collate import Collate
from experiments.dense.datasets.dataset import DenseDataset
from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.kinds import UNKNOWN
from experiments.dense.datasets.loader import EpochBatches, InOrder, Key, load
from experiments.dense.suite import Again, Batch
from experiments.runner.processes import place


class DiskSplit:
    """Images of a split; those to train on change with the epoch, those to measure on never do.

    One loader serves all that is read, so that its workers start once.

    Args:
        dataset: What is read.
        collate: Stacks samples.
        device: Where batches come to lie.
        channels: Of every task's prediction.
        workers: Processes that read ahead; 0 reads in this one.

    Attributes:
        skipped: As of `experiments.dense.suite.Images`.
    """

    def __init__(
        self,
        dataset: DenseDataset,
        collate: Collate,
        device: torch.device,
        channels: Mapping[str, int],
        *,
        workers: int = 0,
    ) -> None:
        self.dataset, self.collate, self.device, self.channels = dataset, collate, device, channels
        self.skipped: dict[str, str] = {}
        self._workers, self._wanted = workers, Wanted()
        self._loader: DataLoader | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, rows: slice) -> Batch:
        """As of `Images`; in the place of one that is skipped the next one behind them."""
        wanted = range(*rows.indices(len(self)))
        samples = []
        for index in (*wanted, *(other for other in range(len(self)) if other not in wanted)):
            if len(samples) == len(wanted):
                break
            sample = self.dataset[index]
            if "image" in sample:
                samples.append(sample)
        return self._placed(self.collate(samples))

    def steps(self, size: int, seed: int, until: int, start: int = 0) -> Iterable[Batch]:
        """As of `Images`; of several processes each gets its part of every batch.

        Raises:
            ValueError: There are fewer images than a batch has, or the processes do not divide it.
        """
        rank, processes = place()
        order = EpochBatches(len(self), size, steps=until, seed=seed, start=start, rank=rank, processes=processes)
        return Again(lambda: map(self._placed, self._read(order)))

    def in_order(self, size: int) -> Iterable[Batch]:
        """As of `Images`, at most eight at once, without those that are skipped; several processes share them."""
        rank, processes = place()
        order = InOrder(len(self), min(size, 8), rank=rank, processes=processes)
        return Again(lambda: (self._placed(read) for read in self._read(order) if "image" in read))

    def pictures(self, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """As of `Images`, as a model is given them."""
        batch, transform = self.batch(rows), self.dataset.transform
        normalisation = transform.normalisation  # pyright: ignore[reportAttributeAccessIssue]  (all of the suites' have one)
        mean, deviation = (torch.tensor(each).reshape(3, 1, 1) for each in normalisation)
        images = batch.pop("image").cpu() * deviation + mean
        targets = {}
        for task, kind in self.collate.kinds.items():
            if task in batch:
                own = batch[task].cpu()
            else:
                channels = (self.channels[task],) if kind in ("normals", "values") else ()
                own = torch.full((len(images), *channels, *images.shape[-2:]), UNKNOWN[kind])
                own = own.to(torch.uint8) if kind == "classes" else own
            targets[task] = own
        return images.mul(255).round().clamp(0, 255).to(torch.uint8), targets

    def _read(self, order: Sampler[list[Key]]) -> Iterator[dict[str, Any]]:
        """Batches as they are collated; what was skipped in them is noted."""
        if self._loader is None:
            pin = self.device.type == "cuda"
            self._loader = load(self.dataset, self._wanted, self.collate, workers=self._workers, pin=pin)
        self._wanted.order = order
        for read in self._loader:
            for reason in read["skipped"]:
                self.skipped.setdefault(reason.partition(" cannot be read")[0], reason)
            yield read

    def _placed(self, read: dict[str, Any]) -> Batch:
        """The tensors of a batch where they are wanted.

        Raises:
            DataError: All of its images were skipped.
        """
        if "image" not in read:
            raise DataError(
                f"none of the images of a batch can be read: {read['skipped'][0]} That is more than can be skipped."
            )
        return {
            name: value.to(self.device, non_blocking=True) for name, value in read.items() if isinstance(value, Tensor)
        }


class Wanted(Sampler[list[Key]]):
    """Whatever batches are wanted next; a loader with workers keeps them over several orders."""

    def __init__(self) -> None:
        self.order: Sampler[list[Key]] | None = None

    def __iter__(self) -> Iterator[list[Key]]:
        assert self.order is not None
        return iter(self.order)
