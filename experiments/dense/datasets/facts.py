"""What a suite of images on disk is: tasks with their losses and meters, splits, size, and every choice that was made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

from torch import Tensor

from experiments.dense.datasets.collate import Collate
from experiments.dense.datasets.dataset import DenseDataset, Transform
from experiments.dense.datasets.kinds import Kind
from experiments.dense.datasets.reader import Reader

Shown = Literal["labels", "depth", "normals", "edges", "signed"]


@dataclass(frozen=True)
class DenseTask:
    """One thing to predict at every pixel.

    Attributes:
        name: Key of the target in samples and of the prediction in outputs.
        channels: Of the prediction.
        kind: What a target holds, and what is unknown in it.
        loss: `loss(prediction, target)`, a scalar; prediction `(b, channels, h, w)`.
        meter: Name of the metric in `dtme.metrics`.
        metric_name: How it is headed in a table, with its unit.
        shown: How a prediction is drawn.
        weight: Of the loss in the sum that is minimised.
        classes: Names of the classes, where there are classes.
        meter_options: What the metric is made with.
        measured_on: Key of what the metric is updated with, where that is not the target.
    """

    name: str
    channels: int
    kind: Kind
    loss: Callable[[Tensor, Tensor], Tensor]
    meter: str
    metric_name: str
    shown: Shown
    weight: float = 1.0
    classes: tuple[str, ...] = ()
    meter_options: Mapping[str, Any] = field(default_factory=dict)
    measured_on: str = ""


@dataclass(frozen=True)
class DenseSuite:
    """A benchmark of images on disk.

    Attributes:
        name: As the command line calls it.
        tasks: In the order of every table.
        reader: Of the data, which says its layout.
        train: What every row trains on, with augmentation.
        test: What every row is measured on, without.
        val: What settings are chosen on, where the data set has such a split.
        size: Height and width that a model is given.
        choices: Every choice that was made, by name, as tables print them.
    """

    name: str
    tasks: tuple[DenseTask, ...]
    reader: Reader
    train: DenseDataset
    test: DenseDataset
    val: DenseDataset | None
    size: tuple[int, int]
    choices: Mapping[str, str]

    @property
    def collate(self) -> Collate:
        """Stacks samples of any split."""
        kinds: dict[str, Kind] = {task.name: task.kind for task in self.tasks}
        kinds |= {task.measured_on: "classes" for task in self.tasks if task.measured_on}
        return Collate(kinds)


def written(choices: Any) -> dict[str, str]:
    """A dataclass of choices as words, in its order.

    >>> @dataclass
    ... class Choices:
    ...     edge_weight: float = 0.95
    ...     tasks: tuple[str, ...] = ("depth", "normals")
    >>> written(Choices())
    {'edge_weight': '0.95', 'tasks': 'depth, normals'}
    """
    said = {}
    for one in fields(choices):
        value = getattr(choices, one.name)
        said[one.name] = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return said


def chosen_tasks(wanted: Sequence[str] | None, offered: Sequence[str], reader: Reader) -> tuple[str, ...]:
    """The wanted tasks in the order of the suite; all of them where none are named.

    Raises:
        ValueError: One is not of the suite, or the copy of the data does not have it.
    """
    chosen = tuple(task for task in offered if wanted is None or task in wanted)
    unknown = [task for task in wanted or () if task not in offered]
    if unknown:
        raise ValueError(f"tasks={wanted}: there is no {unknown[0]!r} among {tuple(offered)}.")
    absent = [task for task in chosen if task not in reader.tasks]
    if absent:
        raise ValueError(
            f"{reader.root} ({reader.layout}) says nothing of {', '.join(absent)}: choose some of what it has, "
            f"tasks={reader.tasks}, or get a copy that is whole."
        )
    return chosen


class FileChoices(Protocol):
    """What every suite's choices say of files."""

    @property
    def missing(self) -> str:
        """What a target that is not there means: `leave_out`, or anything else where it is an error."""
        ...

    @property
    def unreadable(self) -> Literal["error", "skip"]:
        """What a file that cannot be decoded means."""
        ...


def suite_of(
    name: str,
    reader: Reader,
    tasks: tuple[DenseTask, ...],
    transforms: tuple[Transform, Transform],
    size: tuple[int, int],
    choices: FileChoices,
    *,
    seed: int,
    splits: Mapping[str, Sequence[str]] | None = None,
    said: Mapping[str, str] | None = None,
    measured_on: Mapping[str, Collection[str]] | None = None,
) -> DenseSuite:
    """A suite of a reader's images.

    Args:
        name: Of the suite.
        reader: Of the data.
        tasks: In the order of tables.
        transforms: What is done to images to train on, and to those to measure on.
        size: Height and width that come out.
        choices: A dataclass; said in the suite, and followed where files are missing or unreadable.
        seed: Of the augmentation.
        splits: Names of the images of `train`, `test` and, if there is one, `val`; by default the reader's.
        said: More of what was chosen, as of `DenseSuite.choices`.
        measured_on: More maps of the images to measure on, each with the names of the images that have it.
    """
    names = tuple(task.name for task in tasks)
    made = {
        split: DenseDataset(
            reader,
            own,
            names,
            transforms[0] if split == "train" else transforms[1],
            seed=seed,
            missing="leave_out" if choices.missing == "leave_out" else "error",
            unreadable=choices.unreadable,
            more=None if split == "train" else measured_on,
        )
        for split, own in (reader.splits if splits is None else splits).items()
    }
    facts = {"layout": reader.layout, **written(choices), "tasks": ", ".join(names), "size": f"{size[0]} x {size[1]}"}
    return DenseSuite(
        name, tasks, reader, made["train"], made["test"], made.get("val"), size, {**facts, **(said or {})}
    )
