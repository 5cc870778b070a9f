"""What is wrong with a file, said so that a training run, a check and a person can act on it."""

from __future__ import annotations

import struct
import tokenize
import zlib
from pathlib import Path
from typing import Literal

Fault = Literal["missing", "unreadable", "wrong"]
"""A file that is not there; whose bytes cannot be decoded; that decodes, but not to what it should hold."""

BROKEN: tuple[type[Exception], ...] = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
)
"""What decoders raise, each its own, when bytes are not what they should be."""


class DataError(ValueError):
    """A data set that cannot be used as it is.

    A message alone makes one, so that it keeps its type on the way out of a loader's worker.

    Attributes:
        path: The file at fault, if it is one.
        fault: What is wrong with it.
    """

    def __init__(self, message: str, path: Path | None = None, fault: Fault = "wrong") -> None:
        super().__init__(message)
        self.path = path
        self.fault: Fault = fault


def unreadable(path: Path, what: str, error: object) -> DataError:
    """The error for a file whose bytes make no `what`."""
    return DataError(
        f"{path} cannot be read as {what} ({error}). Get the file again; unreadable='skip' goes on without it, counted.",
        path,
        "unreadable",
    )


def missing(path: Path, remedy: str = "Get the file") -> DataError:
    """The error for a file that is not there."""
    return DataError(f"{path} is missing. {remedy}; missing='leave_out' goes on without it.", path, "missing")
