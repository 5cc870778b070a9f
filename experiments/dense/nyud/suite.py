"""The suite `nyud`: NYUD-v2 with semantic segmentation, depth, surface normals and edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.dense.datasets.facts import DenseSuite, chosen_tasks, suite_of
from experiments.dense.datasets.kinds import Kind
from experiments.dense.datasets.reader import Reader, stored_size
from experiments.dense.invpt.choices import Choices, transforms_of
from experiments.dense.invpt.tasks import task_of, tiled
from experiments.dense.nyud.layouts import CROPPED, Border, open_nyud
from experiments.dense.nyud.official import CLASSES

TASKS = ("semseg", "depth", "normals", "edges")
PADDED = (448, 576)
"""What 425 x 560 is padded to, so that patches of 16 tile it."""

TOLERANCE = 0.011
"""Of the place of an edge, as a fraction of the diagonal."""


@dataclass(frozen=True)
class NyudChoices(Choices):
    """As `Choices`, and two more.

    Attributes:
        border: `crop` keeps the inner 425 x 560 of copies of 480 x 640.
        gray_normals: Gray pixels of pictures of normals, which are no direction, are `known`, as in the field, or `unknown`.
    """

    border: Border = "keep"
    gray_normals: Literal["known", "unknown"] = "known"


def suite(data: Path, choices: NyudChoices | None = None, *, seed: int = 0) -> DenseSuite:
    """The suite, of any of the layouts of NYUD-v2.

    Args:
        data: Its folder, or `nyu_depth_v2_labeled.mat`; never written to.
        choices: What the paper leaves open.
        seed: Of the augmentation.

    Raises:
        DataError: It is not there, is none of the layouts, or its first images cannot be read.
        ValueError: A choice does not fit it.
    """
    choices = choices or NyudChoices()
    return made_from(opened(data, choices), choices, seed=seed)


def opened(data: Path, choices: NyudChoices, progress: Callable[[int, int], None] | None = None) -> Reader:
    """The reader of the data; nothing here takes so long that progress is told."""
    return open_nyud(data, border=choices.border, gray_normals=choices.gray_normals)


def made_from(reader: Reader, choices: NyudChoices, *, seed: int = 0) -> DenseSuite:
    """The suite of what a reader reads."""
    names = chosen_tasks(choices.tasks, TASKS, reader)
    tasks = tuple(task_of(name, choices, CLASSES if name == "semseg" else (), tolerance=TOLERANCE) for name in names)
    stored = stored_size(reader, reader.splits["train"])
    size = choices.size or (PADDED if stored == CROPPED else tiled(stored))
    kinds: dict[str, Kind] = {task.name: task.kind for task in tasks}
    transforms = transforms_of(choices, kinds, size, angle=0.0, zooms=(1.0, 1.2, 1.5))
    return suite_of("nyud", reader, tasks, transforms, size, choices, seed=seed)
