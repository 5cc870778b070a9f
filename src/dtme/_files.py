"""Files that are whole or not there: atomic writes, and JSON read with an eye on what it claims to be."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place once the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: Its bytes are no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file ({error}).") from error


def read_json(text: str, expected: str, source: str, versions: tuple[int, ...] = (1,)) -> dict[str, Any]:
    """The object in a JSON text that says of itself that it is `expected`.

    Raises:
        ValueError: It is no JSON, no object, of another format, or of a version this library does not know.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} is not readable JSON ({error}). It may be cut short: write it again.") from error
    found = data.get("format") if isinstance(data, dict) else type(data).__name__
    if found != expected:
        raise ValueError(f"{source} holds {found!r}, expected the format {expected!r}.")
    version = data.get("version")
    if version not in versions:
        remedy = " A newer one wrote it: upgrade dtme." if isinstance(version, int) and version > max(versions) else ""
        raise ValueError(f"{source} has version {version!r} of {expected}; this library reads {versions}.{remedy}")
    return data
