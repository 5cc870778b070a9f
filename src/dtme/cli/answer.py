"""What a command found, and how it refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes:
        data: For `--json`, one object.
        text: For a reader.
        yes: Whether the answer is not "no", which is exit code 1.
    """

    data: Mapping[str, Any]
    text: str
    yes: bool = True


class UsageError(Exception):
    """The command cannot begin as it was given: exit code 2; its words are for the user."""


def plain(value: Any) -> Any:
    """Data as JSON has it: tuples are lists, keys are strings, and what is no finite number is `None`.

    Example:
        >>> plain({"a": (1.0, float("nan")), 2: None})
        {'a': [1.0, None], '2': None}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def listed(names: Mapping[str, object], indent: str = "  ") -> str:
    """Names one per line, each with what belongs to it.

    Example:
        >>> print(listed({"depth": 1, "semseg": "two"}))
          depth   1
          semseg  two
    """
    width = max(map(len, names), default=0)
    return "\n".join(f"{indent}{name:<{width}}  {value}".rstrip() for name, value in names.items())
