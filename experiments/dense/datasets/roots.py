"""Where inside the folder somebody names the data set lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from experiments.dense.datasets.errors import DataError

Found = TypeVar("Found")


def folders_of(data: Path) -> list[Path]:
    """The folder itself and the folders right inside it, by name.

    Raises:
        DataError: There is no such folder.
    """
    if not data.exists():
        raise DataError(f"data={str(data)!r} does not exist. Give the folder of the data set.", data, "missing")
    if not data.is_dir():
        raise DataError(
            f"data={str(data)!r} is a file. Give the folder of the data set; unpack an archive first.", data
        )
    try:
        inner = sorted(path for path in data.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"data={str(data)!r} cannot be listed ({error}). Make it readable.", data, "unreadable"
        ) from error
    return [data, *inner]


def find(data: Path, recognise: Callable[[Path], Found | None]) -> Found | None:
    """What `recognise` makes of the folder or, if nothing, of the one folder right inside it of which it makes something.

    Raises:
        DataError: There is no such folder, or several inside it are data sets.
    """
    here, *inner = folders_of(data)
    found = recognise(here)
    if found is not None:
        return found
    hits = [(path, made) for path in inner if (made := recognise(path)) is not None]
    if len(hits) > 1:
        names = ", ".join(path.name for path, _ in hits)
        raise DataError(f"data={str(data)!r} holds several data sets: {names}. Give the folder of one.", data)
    return hits[0][1] if hits else None


def suffixes_in(folder: Path, most: int = 200) -> dict[str, int]:
    """How many files of each suffix are among the first of a folder, in no order; empty if there is no folder.

    Example:
        >>> suffixes_in(Path("no/such/folder"))
        {}
    """
    counts: dict[str, int] = {}
    try:
        for number, path in enumerate(folder.iterdir()):
            if number == most:
                break
            if not path.name.startswith("."):
                counts[path.suffix.lower()] = counts.get(path.suffix.lower(), 0) + 1
    except OSError:
        return {}
    return counts
