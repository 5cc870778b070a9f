"""Several files that take the place of others together: one rename decides, whenever the process is killed.

New files are made in a folder beside the old ones. Once they are complete, that folder is given the name `.next`, and from then
on they count: a reader looks there first, and whoever writes next moves to their places what a killed process has left there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dtme._files import clean_beside, room_for, temporary_beside

NEXT = ".next"
_TRIES = 100
"""Times that other processes may come first that write to the same folder."""


@contextmanager
def written_together(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A new folder; the files that are written into it take the places of those of the same names, all or none.

    Args:
        folder: Where they belong; made if it is not there.
        names: Of the files, in the order in which they are moved.

    Raises:
        OSError: There is no room; the earlier files stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clean_beside(folder / NEXT)
    fresh = temporary_beside(folder / NEXT)
    try:
        with room_for(folder / names[0]):
            fresh.mkdir()
            yield fresh
            for path in fresh.iterdir():  # as the umask has it, which the folder was made by
                path.chmod(fresh.stat().st_mode & 0o666)
            _decide(fresh, folder, names)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    finish(folder, names)


def _decide(fresh: Path, folder: Path, names: Sequence[str]) -> None:
    for left in reversed(range(_TRIES)):
        finish(folder, names)
        try:
            os.rename(fresh, folder / NEXT)
        except OSError:
            if not left or not (folder / NEXT).exists():
                raise
        else:
            return


def finish(folder: Path, names: Sequence[str]) -> None:
    """Move files that count already to their places."""
    for name in names:
        with suppress(FileNotFoundError):  # not among them, or moved before
            (folder / NEXT / name).replace(folder / name)
    with suppress(OSError):
        (folder / NEXT).rmdir()


def place_of(folder: Path, name: str) -> Path:
    """Where the file of that name is that counts."""
    waiting = folder / NEXT / name
    return waiting if waiting.is_file() else folder / name
