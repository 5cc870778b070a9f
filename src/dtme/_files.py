"""Files that are whole or not there: atomic writes, and JSON read with an eye on what it claims to be."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOST_BYTES = 2**26
"""Of a text file; the largest in use have a few MB."""
DEEPEST = 32
"""Lists in lists of a JSON file."""
_IS_DIGEST = re.compile("[0-9a-f]{64}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ABANDONED = 24 * 3600
"""Seconds after which a temporary file of another machine is taken for one that nobody finishes."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` once the block ends without an error.

    It lies in a folder of its own beside it, so that what a writer puts there for a while goes with it. What writers that were
    killed have left is taken away. The file's mode follows the umask.

    Raises:
        OSError: There is no room; the message names the file and the room there is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clean_beside(path)
    folder = temporary_beside(path)
    try:
        with room_for(path):
            folder.mkdir()
            temporary = folder / path.name
            yield temporary
            temporary.chmod(folder.stat().st_mode & 0o666)
            temporary.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_beside(path: Path) -> Path:
    """A name beside a path that is free, and says which process means to use it."""
    own = f".{uuid.uuid4().hex[:8]}.{_machine()}-{os.getpid()}.part"
    return path.with_name(f".{path.name[: 200 - len(own)]}{own}")


def clean_beside(path: Path) -> None:
    """Take away what processes that are no more have left under temporary names of a path."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        machine, _, process = left.name.removesuffix(".part").rpartition(".")[2].rpartition("-")
        try:
            old = time.time() - left.stat().st_mtime > _ABANDONED
            if old or (machine == _machine() and not _is_alive(process)):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except OSError:
            continue  # another process cleans up, too


def _machine() -> str:
    return "".join(c for c in platform.node() if c.isalnum())[:32] or "here"


def _is_alive(process: str) -> bool:
    if os.name == "nt" or not process.isdecimal():
        return True  # it cannot be asked without a signal
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Tell it by the file's name where a disk is full, whatever the writer makes of that.

    Raises:
        OSError: It is; the message names the file and the room there is.
    """
    try:
        yield
    except Exception as error:
        told = str(error)
        number = error.errno if isinstance(error, OSError) else None
        if number not in _FULL and not any(os.strerror(one) in told for one in _FULL):
            raise
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            number or errno.ENOSPC,
            f"{path} is not written, {os.strerror(number or errno.ENOSPC).lower()}: {free / 1e6:.0f} MB are free there. What was "
            "there before stays as it was. Make room, or write elsewhere.",
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Mapping[str, Any], *, indent: int | None = None, allow_nan: bool = True) -> None:
    """Write an object with a digest of what it holds, by which `read_json` tells a file that was damaged."""
    write_text(path, json.dumps(with_digest(data), indent=indent, allow_nan=allow_nan) + "\n")


def with_digest(data: Mapping[str, Any]) -> dict[str, Any]:
    """An object with its digest.

    Example:
        >>> with_digest({"a": 1})["digest"][:8] == with_digest({"a": 2})["digest"][:8]
        False
    """
    return {**data, "digest": _digest_of(json.loads(json.dumps(data)))}


def _digest_of(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            found.update(chunk)
    return found.hexdigest()


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a file.

    Raises:
        ValueError: Its bytes are no text, or more than any file of this library has.
    """
    size = path.stat().st_size
    if size > most:
        raise ValueError(
            f"{path} has {size} bytes, {most} are the most that are read: it is another file than is meant."
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file ({error}).") from error


def parse_json(text: str, source: str) -> Any:
    """What a JSON text holds, whoever wrote it.

    Raises:
        ValueError: It is no JSON, or lies deeper in itself than anything that this library writes.

    Example:
        >>> parse_json("[" * 100_000, "plan.json")
        Traceback (most recent call last):
        ...
        ValueError: plan.json is not readable JSON (RecursionError: ...). It may be cut short: write it again.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "" if isinstance(error, json.JSONDecodeError) else f"{type(error).__name__}: "
        raise ValueError(
            f"{source} is not readable JSON ({kind}{error}). It may be cut short: write it again."
        ) from error
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(
                f"{source} holds lists in lists more than {DEEPEST} deep: it is another file than is meant."
            )
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
                raise ValueError(f"{source} holds half of a character ({value[:40]!a}), which no text has.")
        level = inner
    return data


def read_json(text: str, expected: str, source: str, versions: tuple[int, ...] = (1,)) -> dict[str, Any]:
    """The object in a JSON text that says of itself that it is `expected`, without its digest.

    Raises:
        ValueError: It is no JSON, no object, of another format, of a version this library does not know, or not what was written.
    """
    data = parse_json(text, source)
    found = data.get("format") if isinstance(data, dict) else type(data).__name__
    if found != expected:
        raise ValueError(f"{source} holds {found!r}, expected the format {expected!r}.")
    version = data.get("version")
    if type(version) is not int or version not in versions:
        remedy = " A newer one wrote it: upgrade dtme." if isinstance(version, int) and version > max(versions) else ""
        raise ValueError(f"{source} has version {version!r} of {expected}; this library reads {versions}.{remedy}")
    digest = data.pop("digest", None)
    if digest is None:  # none was written, or its own name was damaged
        digest = next((one for one in data.values() if isinstance(one, str) and _IS_DIGEST.fullmatch(one)), None)
    if digest is not None and digest != _digest_of(data):
        raise ValueError(
            f"{source} is damaged, or was changed by hand: it does not hold what was written (its digest differs). Take it from "
            "where it was saved; what was changed on purpose is read without its 'digest'."
        )
    return data
