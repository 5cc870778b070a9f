"""Lists of names: which images belong to a split."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from experiments.dense.datasets.errors import DataError, missing

_PLAIN = re.compile(r"[\w-][\w.-]*")


def read_ids(path: Path) -> tuple[str, ...]:
    """The names in a text file, one a line, in its order.

    Raises:
        DataError: The file is missing or empty, is no text, names something twice, or holds what is no plain file name.
    """
    try:
        lines = path.read_text(encoding="utf-8").split()
    except FileNotFoundError as error:
        raise missing(path, "Get the list of the split") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no list of names ({error}). Get the file again.", path, "unreadable") from error
    return checked_ids(lines, path)


def checked_ids(ids: list[str], path: Path) -> tuple[str, ...]:
    """The names, once it is sure that there are some, that each is a plain file name, and that none comes twice.

    Raises:
        DataError: One of these does not hold.
    """
    if not ids:
        raise DataError(f"{path} names no image. Get the list again.", path)
    strange = next((name for name in ids if not _PLAIN.fullmatch(name)), None)
    if strange is not None:
        raise DataError(f"{path} holds {strange!r}, which is no plain file name. Get the list again.", path)
    name, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path} names {name!r} {count} times. Name each image once.", path)
    return tuple(ids)


def check_apart(splits: dict[str, tuple[str, ...]], where: Path) -> None:
    """Refuse splits that share an image.

    Raises:
        DataError: They do; names one.
    """
    seen: dict[str, str] = {}
    for split, ids in splits.items():
        for name in ids:
            if name in seen:
                raise DataError(
                    f"{where}: image {name!r} is in {seen[name]!r} and in {split!r}, so nothing measured there would hold. "
                    "Get the lists again."
                )
            seen[name] = split
