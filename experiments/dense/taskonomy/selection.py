"""Which views of which buildings make the splits of a suite, and what was left out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.dense.datasets.errors import DataError
from experiments.dense.taskonomy.domains import RGB
from experiments.dense.taskonomy.index import Building, point_and_view
from experiments.dense.taskonomy.reader import SOURCE, TaskonomyReader
from experiments.dense.taskonomy.splits import KNOWN_CORRUPT, WITHHELD


@dataclass(frozen=True)
class Selection:
    """The images of a split.

    Attributes:
        names: Of the images.
        dropped: How many of the pictures are left out because some domain does not know them.
        corrupt: How many because they are corrupt in everybody's download.
        absent: Buildings of the split that are not there.
    """

    names: tuple[str, ...]
    dropped: int
    corrupt: int
    absent: tuple[str, ...]

    def __str__(self) -> str:
        said = [f"{len(self.names)} images"]
        if self.dropped:
            said.append(f"{self.dropped} left out for want of a domain")
        if self.corrupt:
            said.append(f"{self.corrupt} known to be corrupt left out")
        if self.absent:
            said.append(f"without {', '.join(self.absent)}")
        return "; ".join(said)


def select(
    reader: TaskonomyReader,
    split: str,
    buildings: Sequence[str],
    tasks: Sequence[str],
    *,
    partial: bool,
    absent: Literal["error", "leave_out"],
) -> Selection:
    """The images of some buildings, in the order of the list, then of points and views.

    Args:
        reader: What there is.
        split: For the errors.
        buildings: Of the split.
        tasks: Whose targets are needed.
        partial: Keep a picture that only some of the tasks know, rather than only those that all know.
        absent: What a building means that is not there, unless it is one that nobody is given.

    Raises:
        DataError: A building is not there, has no file of a task, or nothing is left.
    """
    there = [name for name in buildings if RGB in _where(reader, name)]
    gone = tuple(name for name in buildings if name not in there)
    unexpected = [name for name in gone if name not in WITHHELD]
    if unexpected and absent == "error":
        raise DataError(
            f"{reader.root} has no pictures of {_some(unexpected)}, which the {split} split names: get them by {SOURCE}, or go "
            "on without, not comparable, by absent='leave_out'."
        )
    lacking = [f"{name} has no {task}" for name in there for task in tasks if task not in _where(reader, name)]
    if lacking and not partial:
        raise DataError(
            f"{reader.root}: {_some(lacking)}, in the {split} split. Get these folders by {SOURCE}, choose fewer tasks, or train "
            "on images that are labelled in part by missing='leave_out'."
        )
    names, pictures, corrupt = [], 0, 0
    for name in there:
        building = reader.buildings[name]
        keys = _partial(building, tasks) if partial else building.complete((RGB, *tasks))
        pictures += int(building.has(RGB).sum())
        own = [point_and_view(key) for key in keys]
        sound = [at for at in own if not any((domain, name, *at) in KNOWN_CORRUPT for domain in (RGB, *tasks))]
        corrupt += len(own) - len(sound)
        names += [f"{name}/{point}/{view}" for point, view in sound]
    if not names:
        raise DataError(
            f"{reader.root}: of {pictures} pictures of the {split} split none is known to {', '.join(tasks)}."
        )
    return Selection(tuple(names), pictures - len(names) - corrupt, corrupt, gone)


def check_known(reader: TaskonomyReader, names: Sequence[str], tasks: Sequence[str]) -> None:
    """Refuse to train a task that no image is labelled for.

    Raises:
        DataError: There is one.
    """
    for task in tasks:
        if not any(reader.has(name, task) for name in names):
            raise DataError(f"{reader.root}: none of {len(names)} training images has a {task}. Choose other tasks.")


def in_file_order(names: Sequence[str]) -> list[str]:
    """Names in the order of sorted file names, building by building, in which point 10 comes before point 2.

    >>> in_file_order(["b/2/0", "b/10/0", "a/1/0"])
    ['b/10/0', 'b/2/0', 'a/1/0']
    """
    order = {name: place for place, name in enumerate(dict.fromkeys(name.partition("/")[0] for name in names))}

    def file_of(name: str) -> tuple[int, str]:
        building, point, view = name.split("/")
        return order[building], f"point_{point}_view_{view}_domain"

    return sorted(names, key=file_of)


def _where(reader: TaskonomyReader, name: str) -> Mapping[str, np.ndarray]:
    return reader.buildings[name].where if name in reader.buildings else {}


def _partial(building: Building, tasks: Sequence[str]) -> np.ndarray:
    known = np.zeros(len(building.keys), bool)
    for task in tasks:
        known |= building.has(task)
    return building.keys[known & building.has(RGB)]


def _some(said: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(said) - most} more" if len(said) > most else ""
    return ", ".join(said[:most]) + rest
