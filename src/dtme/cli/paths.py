"""Files, checked before work starts: what is read is there, and what is written has a place."""

from __future__ import annotations

from pathlib import Path

from dtme.cli.answer import UsageError


def check_input(path: Path, what: str) -> Path:
    """A file to read.

    Raises:
        UsageError: There is none.
    """
    if not path.is_file():
        raise UsageError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: give {what}.")
    return path


def check_output(path: Path | None, suffix: str) -> None:
    """A file to write, which may be there already where writing is whole or not at all.

    Raises:
        UsageError: It is a folder, its folder is not there, or it is called like another kind of file.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file in it, {path / f'name{suffix}'} say.")
    if path.suffix != suffix:
        raise UsageError(f"{path}: what is written there ends in {suffix}, {path.with_suffix(suffix)} say.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Make it first.")
