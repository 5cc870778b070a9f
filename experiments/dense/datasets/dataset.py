"""A split of a data set as torch reads one: samples by number, the same ones whenever and wherever they are asked for."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from experiments.dense.datasets.reader import Reader, read_sample

Sample = dict[str, Any]
"""`"image"`, the target of every task that is known, and `"name"`.

Where something was skipped there is `"skipped"`, the reason; where that was the picture there is no `"image"`.
"""


class Transform(Protocol):
    """From maps as stored to what a model is given; all chance is drawn from `chance`."""

    def __call__(self, sample: Mapping[str, Tensor], chance: random.Random) -> dict[str, Tensor]:
        """The sample, changed; the one given stays as it is."""
        ...


class DenseDataset(Dataset[Sample]):
    """Images of one split, read and transformed when they are asked for.

    `dataset[i]` is image i with the chance of epoch 0, `dataset[epoch, i]` with that of another epoch. What is drawn depends on
    `seed`, epoch and i alone, so neither on the number of workers nor on what was read before.

    Args:
        reader: Where they are read.
        names: Which ones, in order.
        tasks: Which targets.
        transform: What is done to each.
        seed: Of the transform's chance.
        missing: What a target that is not there means: an error, or that it is left out of the sample.
        unreadable: What a file that cannot be decoded means: an error, or that the target, or with the picture the whole sample,
            is skipped; the reason then stands in the sample's `"skipped"`.
        more: Maps besides the targets, each with the names of the images that have it.

    Raises:
        ValueError: There are no images, or a task that the layout does not have.
    """

    def __init__(
        self,
        reader: Reader,
        names: Sequence[str],
        tasks: Sequence[str],
        transform: Transform,
        *,
        seed: int = 0,
        missing: Literal["error", "leave_out"] = "error",
        unreadable: Literal["error", "skip"] = "error",
        more: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        unknown = [task for task in tasks if task not in reader.tasks]
        if unknown:
            raise ValueError(
                f"tasks={tuple(tasks)}: {reader.layout} in {reader.root} has no {unknown[0]!r}; it has {reader.tasks}."
            )
        if not tasks or not len(names):
            raise ValueError(f"{reader.root}: {len(names)} images and {len(tasks)} tasks. Give at least one of each.")
        self.reader = reader
        self.names = names
        self.tasks = tuple(tasks)
        self.transform = transform
        self.seed = seed
        self.missing = missing
        self.unreadable = unreadable
        self.more = more or {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self.names):
            raise IndexError(f"image {index} of {len(self.names)}")
        name, skipped = self.names[index], []
        maps = read_sample(
            self.reader,
            name,
            (*self.tasks, *(of for of, names in self.more.items() if name in names)),
            leave_out=self.missing == "leave_out",
            skipped=None if self.unreadable == "error" else skipped,
        )
        sample: Sample = {"name": name}
        if maps:
            sample.update(self.transform(maps, random.Random(f"{self.seed}/{epoch}/{index}")))
        if skipped:
            sample["skipped"] = " ".join(skipped)
        return sample

    def stored(self, index: int) -> dict[str, Tensor]:
        """The maps of an image as they are stored.

        Raises:
            DataError: As of `reader.read_sample`.
        """
        return read_sample(self.reader, self.names[index], self.tasks, leave_out=self.missing == "leave_out")
