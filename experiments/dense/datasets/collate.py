"""From samples to a batch, also where not every image is labelled for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.dense.datasets.dataset import Sample
from experiments.dense.datasets.kinds import UNKNOWN, Kind

Batch = dict[str, Any]
"""`"image"`, a target for every task that some image of the batch is labelled for, `"names"`, and `"skipped"`, a reason each."""


@dataclass(frozen=True)
class Collate:
    """Stacks samples; an image without a label gets one that is unknown everywhere, which no loss and no metric counts.

    A task that no image of the batch is labelled for is left out of the batch. A sample without an image, as skipping leaves
    one, is left out, too. A batch of skipped samples alone has no `"image"`.

    Attributes:
        kinds: Of every task's target.

    Raises:
        ValueError: Images of one batch differ in size.

    Example:
        >>> collate = Collate({"semseg": "classes"})
        >>> blank = torch.zeros(3, 1, 2)
        >>> labelled = {"image": blank, "semseg": torch.tensor([[4, 5]], dtype=torch.uint8), "name": "a"}
        >>> collate([labelled, {"image": blank, "name": "b"}])["semseg"].tolist()
        [[[4, 5]], [[255, 255]]]
    """

    kinds: Mapping[str, Kind]

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The batch."""
        kept = [sample for sample in samples if "image" in sample]
        batch: Batch = {
            "names": tuple(sample["name"] for sample in kept),
            "skipped": tuple(sample["skipped"] for sample in samples if "skipped" in sample),
        }
        if not kept:
            return batch
        sizes = {tuple(sample["image"].shape) for sample in kept}
        if len(sizes) > 1:
            raise ValueError(f"images of one batch have the sizes {sorted(sizes)}: transform them to one size.")
        batch["image"] = torch.stack([sample["image"] for sample in kept])
        for task, kind in self.kinds.items():
            labelled = next((sample[task] for sample in kept if task in sample), None)
            if labelled is not None:
                nothing = torch.full_like(labelled, UNKNOWN[kind])
                batch[task] = torch.stack([sample.get(task, nothing) for sample in kept])
        return batch


def labelled_tasks(batch: Mapping[str, Any], tasks: Sequence[str]) -> tuple[str, ...]:
    """Those of the tasks that the batch can say something about, the only ones whose losses it gives.

    >>> labelled_tasks({"image": torch.zeros(1), "depth": torch.zeros(1)}, ["semseg", "depth"])
    ('depth',)
    """
    return tuple(task for task in tasks if isinstance(batch.get(task), Tensor))
