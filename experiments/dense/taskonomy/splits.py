"""Which buildings belong to which split."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from experiments.dense.datasets.errors import DataError, missing

Size = Literal["tiny", "medium", "full", "fullplus"]

TINY: Mapping[str, tuple[str, ...]] = {
    "train": (
        *("hanson", "merom", "klickitat", "onaga", "leonardo", "marstons", "newfields", "pinesdale", "lakeville"),
        *("cosmos", "benevolence", "pomaria", "tolstoy", "shelbyville", "allensville", "wainscott", "beechwood"),
        *("coffeen", "stockman", "hiteman", "woodbine", "lindenwood", "forkland", "mifflinburg", "ranchester"),
    ),
    "val": ("wiconisco", "corozal", "collierville", "markleeville", "darden"),
    "test": ("ihlen", "muleshoe", "uvalda", "noxapater", "mcdade"),
}

COUNTS: Mapping[Size, tuple[int, int, int]] = {
    "tiny": (25, 5, 5),
    "medium": (99, 20, 19),
    "full": (346, 67, 69),
    "fullplus": (383, 75, 79),
}
"""Buildings to train, to choose and to measure on, as counted in the official files; their README says otherwise."""

WITHHELD = ("mosquito", "tansboro", "tomkins", "darnestown", "brinnon", "rough", "woodbine")
"""Buildings that the download tool does not give out, three of them without pictures, one with wrong views."""

KNOWN_CORRUPT = {
    ("rgb", "newfields", 1070, 8),
    ("rgb", "muleshoe", 399, 5),
    ("rgb", "woodbine", 1096, 6),
}
"""Pictures, by domain, building, point and view, that are corrupt in everybody's download."""

SOURCE = "splits_taskonomy.zip in data/assets of StanfordVL/taskonomy"


def buildings_of(root: Path, size: Size, given: Path | None = None) -> dict[str, tuple[str, ...]]:
    """The buildings of each split: of the file given, of the official one beside the data, or, of tiny, as known.

    Args:
        root: Of the data.
        size: Which of the official splits.
        given: A file of the same form.

    Raises:
        DataError: There is no file, or it is no such list.
    """
    name = f"train_val_test_{size}.csv"
    places = (given,) if given is not None else (root / "splits_taskonomy" / name, root / name)
    path = next((place for place in places if place.is_file()), None)
    if path is not None:
        return read_buildings(path)
    if size == "tiny" and given is None:
        return dict(TINY)
    raise missing(places[0], f"Get it from {SOURCE}, into {root / 'splits_taskonomy'}")


def read_buildings(path: Path) -> dict[str, tuple[str, ...]]:
    r"""The buildings of each split in an official CSV: `id,train,val,test` with flags, whatever its lines end with.

    The official ones end with "\r" alone, as on old Macs.

    Raises:
        DataError: It has other columns or flags, or a building is in no split, in several, or twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no list of buildings ({error}). Get it from {SOURCE}.", path, "unreadable"
        ) from error
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if not rows or rows[0] != ["id", "train", "val", "test"]:
        raise DataError(f"{path} begins with {rows[:1]}, but id,train,val,test is meant. Get it from {SOURCE}.", path)
    found: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    seen: set[str] = set()
    for row in rows[1:]:
        if sorted(row[1:]) != ["0", "0", "1"] or row[0] in seen or not row[0].replace("_", "").isalnum():
            raise DataError(f"{path} has the line {row}: each building is named once, with a 1 under one split.", path)
        seen.add(row[0])
        found[("train", "val", "test")[row.index("1", 1) - 1]].append(row[0])
    return {split: tuple(names) for split, names in found.items()}


def counted(buildings: Mapping[str, Sequence[str]]) -> tuple[int, int, int]:
    """How many there are to train, to choose and to measure on.

    >>> counted(TINY) == COUNTS["tiny"]
    True
    """
    return len(buildings["train"]), len(buildings["val"]), len(buildings["test"])
