"""The suite `pascal_context`: PASCAL-Context with segmentation, parts of people, saliency, surface normals and edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from experiments.dense.datasets.facts import DenseSuite, chosen_tasks, suite_of
from experiments.dense.datasets.kinds import Kind
from experiments.dense.datasets.reader import Reader
from experiments.dense.invpt.choices import Choices, transforms_of
from experiments.dense.invpt.tasks import task_of
from experiments.dense.pascal_context.layout import REGIONS, PascalReader, open_pascal
from experiments.dense.pascal_context.official import CLASSES, PARTS, boundary_images
from experiments.dense.pascal_context.people import with_people

TASKS = ("semseg", "parts", "saliency", "normals", "edges")
PADDED = (512, 512)
"""What pictures of at most 500 x 500 are padded to."""
TOLERANCE = 0.0075
"""Of the place of an edge, as a fraction of the diagonal."""


@dataclass(frozen=True)
class PascalChoices(Choices):
    """As `Choices`, and one more.

    Attributes:
        parts_images: What the single task of parts is trained and measured on: `all` images, as every other row; or those
            `with_people` alone, as in the field, whose rows of one task and of many thus see other images.
        edge_protocol: How edges are measured, and on what: `standard`, on the edges that are learned, of all test images;
            `invpt`, on the regions they come from, of 2,498 of the 5,105, as in the tables published with InvPT.
    """

    parts_images: Literal["all", "with_people"] = "all"
    edge_protocol: Literal["standard", "invpt"] = "standard"


def suite(data: Path, choices: PascalChoices | None = None, *, seed: int = 0) -> DenseSuite:
    """The suite.

    Args:
        data: Its folder; never written to.
        choices: What the paper leaves open.
        seed: Of the augmentation.

    Raises:
        DataError: It is not there, or is something else.
        ValueError: A choice does not fit it.
    """
    choices = choices or PascalChoices()
    return made_from(opened(data, choices), choices, seed=seed)


def opened(data: Path, choices: PascalChoices, progress: Callable[[int, int], None] | None = None) -> PascalReader:
    """The reader of the data; nothing here takes so long that progress is told."""
    return open_pascal(data)


def made_from(reader: Reader, choices: PascalChoices, *, seed: int = 0) -> DenseSuite:
    """The suite of what a reader reads."""
    names = chosen_tasks(choices.tasks, TASKS, reader)
    classes = {"semseg": CLASSES, "parts": PARTS}
    tasks = tuple(task_of(name, choices, classes.get(name, ()), tolerance=TOLERANCE) for name in names)
    if choices.edge_protocol == "invpt":
        tasks = tuple(replace(task, measured_on=REGIONS) if task.name == "edges" else task for task in tasks)
    size = choices.size or PADDED
    kinds: dict[str, Kind] = {task.name: task.kind for task in tasks}
    kinds[REGIONS] = "classes"
    transforms = transforms_of(choices, kinds, size, need_foreground=("parts",))
    splits = dict(reader.splits)
    if names == ("parts",) and choices.parts_images == "with_people":
        splits = {split: with_people(reader, own) for split, own in splits.items()}
    more = {}
    if choices.edge_protocol == "invpt" and "edges" in names:
        more[REGIONS] = frozenset(boundary_images(reader.splits["test"]))
    return suite_of(
        "pascal_context", reader, tasks, transforms, size, choices, seed=seed, splits=splits, measured_on=more
    )
