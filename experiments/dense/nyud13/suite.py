"""The suite `nyud13`: 13 classes, depth and normals at 288 x 384, as MTAN has them. It is not NYUD-v2 with 40 classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.dense.datasets.dataset import Transform
from experiments.dense.datasets.facts import DenseSuite, DenseTask, chosen_tasks, suite_of
from experiments.dense.datasets.kinds import Kind
from experiments.dense.datasets.reader import Reader
from experiments.dense.invpt.losses import class_loss, depth_loss
from experiments.dense.nyud13.layouts import open_nyud13
from experiments.dense.nyud13.losses import cosine_loss
from experiments.dense.nyud13.maps import CLASSES, SIZE
from experiments.dense.transforms.colour import IMAGENET
from experiments.dense.transforms.zoomed import AsStored, ZoomFlip

TASKS = ("semseg", "depth", "normals")


@dataclass(frozen=True)
class Nyud13Choices:
    """What is done in more than one way; the losses are MTAN's, all of weight 1.

    Attributes:
        tasks: Some of the suite's tasks; by default all.
        augmentation: `mtan`: one of three zooms, and flips; `none`.
        normalisation: Mean and deviation of channels: `imagenet`; or `none`, from 0 to 1, as MTAN's own convolutions take them.
        meters: How it is measured, as of `dtme.metrics`, pooled over all pixels; MTAN's own meters are means over images,
            which no choice here makes.
        size: Height and width of the images; another than 288 x 384 is another benchmark.
        missing: A target that is not there is an error, or is left out (`leave_out`) and its image labelled in part.
        unreadable: A file that cannot be decoded is an error, or is skipped (`skip`) and counted.
    """

    tasks: tuple[str, ...] | None = None
    augmentation: Literal["mtan", "none"] = "mtan"
    normalisation: Literal["imagenet", "none"] = "imagenet"
    meters: Literal["standard", "invpt"] = "standard"
    size: tuple[int, int] = SIZE
    missing: Literal["error", "leave_out"] = "error"
    unreadable: Literal["error", "skip"] = "error"


def suite(
    data: Path,
    choices: Nyud13Choices | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DenseSuite:
    """The suite, of MTAN's folders or of parquet files.

    Args:
        data: Its folder; never written to. Parquet is unpacked once into the user's cache.
        choices: What is done in more than one way.
        seed: Of the augmentation.
        progress: Told how many parquet rows are unpacked, and of how many.

    Raises:
        DataError: It is not there, or is something else.
        ValueError: A choice does not fit it.
    """
    choices = choices or Nyud13Choices()
    return made_from(opened(data, choices, progress), choices, seed=seed)


def opened(data: Path, choices: Nyud13Choices, progress: Callable[[int, int], None] | None = None) -> Reader:
    """The reader of the data, parquet unpacked."""
    return open_nyud13(data, size=choices.size, progress=progress)


def made_from(reader: Reader, choices: Nyud13Choices, *, seed: int = 0) -> DenseSuite:
    """The suite of what a reader reads."""
    names, meter = chosen_tasks(choices.tasks, TASKS, reader), {"protocol": choices.meters}
    every = (
        DenseTask(
            "semseg",
            len(CLASSES),
            "classes",
            class_loss,
            "MeanIoU",
            "mIoU",
            "labels",
            classes=CLASSES,
            meter_options={"num_classes": len(CLASSES), **meter},
        ),
        DenseTask("depth", 1, "depth", depth_loss, "DepthRMSE", "RMSE (m)", "depth", meter_options=meter),
        DenseTask("normals", 3, "normals", cosine_loss, "MeanAngularError", "mErr (°)", "normals", meter_options=meter),
    )
    tasks = tuple(task for task in every if task.name in names)
    kinds: dict[str, Kind] = {task.name: task.kind for task in tasks}
    normalisation = IMAGENET if choices.normalisation == "imagenet" else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    measuring: Transform = AsStored(kinds, normalisation)
    training = ZoomFlip(kinds, normalisation) if choices.augmentation == "mtan" else measuring
    return suite_of("nyud13", reader, tasks, (training, measuring), choices.size, choices, seed=seed)
