"""Whose code raised: the user's, with the traceback cut to the user's own lines, or this library's."""

from __future__ import annotations

import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OURS = Path(__file__).parents[1]
_LIBRARIES = tuple({Path(path) for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))})
_WORKER = "in DataLoader worker process"


@dataclass(frozen=True)
class Fault:
    """An error of the user's own code.

    Attributes:
        file: Where it was raised, or where the user's code called what raised it.
        function: The function there.
        line: The line there.
        error: Kind and words.
        lines: The traceback, of the user's frames alone.
    """

    file: str
    function: str
    line: int
    error: str
    lines: str = ""

    def __str__(self) -> str:
        """Which function of which file, and the way there."""
        where = (
            f"dtme: {self.file} raised in {self.function}, line {self.line}:"
            if self.line
            else "dtme: your code raised:"
        )
        return f"{where}\n{self.lines}{self.error}"

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"error": self.error, "file": self.file, "function": self.function, "line": self.line}


def find_fault(error: BaseException) -> Fault | None:
    """The fault of the user's code that an error comes from; `None` where the last to act was this library.

    An error that another process told of holds this process's own as its cause, if it had one.
    """
    for own in (error, error.__cause__):
        if own is None or isinstance(own, KeyboardInterrupt):
            continue
        said = "".join(traceback.format_exception_only(own)).rstrip()
        if isinstance(own, SyntaxError) and own.filename and _is_users(own.filename):
            return Fault(own.filename, "its text", own.lineno or 0, said)
        if _WORKER in str(own):  # the words hold the traceback of that process
            return Fault("", "", 0, said)
        frames = traceback.extract_tb(own.__traceback__)
        acting = [frame for frame in frames if _is_users(frame.filename) or _is_ours(frame.filename)]
        if acting and _is_users(acting[-1].filename):
            theirs = [frame for frame in frames if _is_users(frame.filename)]
            last = theirs[-1]
            name = "the file itself" if last.name == "<module>" else last.name
            return Fault(last.filename, name, last.lineno or 0, said, "".join(traceback.format_list(theirs)))
    return None


def is_refusal(error: BaseException) -> bool:
    """Whether an error is one that this library, or the system below, raises on purpose, with words for the user."""
    if isinstance(error, OSError | ImportError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError | RuntimeError) and bool(frames) and _is_ours(frames[-1].filename)


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(_OURS)


def _is_users(file: str) -> bool:
    path = Path(file)
    return not file.startswith("<") and not _is_ours(file) and not any(map(path.is_relative_to, _LIBRARIES))
