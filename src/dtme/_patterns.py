"""Regular expressions out of files from anywhere, matched without going back: no pattern takes longer than its size allows.

Python's `re` tries one way after another, and `((.|.)*)*x` has more ways than seconds are left. Here the places that a part of
the pattern may end at are found once for each place that it may begin at, so that the work is bounded by the pattern's
parts times the square of the text. What no such table can tell, a reference back to what a group has matched, is refused.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from typing import Any

if sys.version_info >= (3, 11):
    from re import _parser  # pyright: ignore[reportAttributeAccessIssue]
else:
    import sre_parse as _parser

MOST_CHARACTERS = 1000
"""Of a pattern; those in use have a dozen."""
_MOST_REPEATS = 10_000
"""Of a part of a pattern; a text that is a layer's name is shorter."""
_DEEPEST = 40
"""Groups in groups."""
_OF_ONE = ("LITERAL", "NOT_LITERAL", "ANY", "IN", "CATEGORY", "RANGE", "NEGATE")
_CLASSES = {"DIGIT": r"\d", "NOT_DIGIT": r"\D", "SPACE": r"\s", "NOT_SPACE": r"\S", "WORD": r"\w", "NOT_WORD": r"\W"}


class Pattern:
    r"""A regular expression without references back, looks behind and flags of a part of it.

    Args:
        pattern: As `re` has it.

    Raises:
        ValueError: It is none, too long, or holds what is not matched here.

    Example:
        >>> Pattern(r"attn\.qkv|.*(in|out)_proj").matches("self_attn.out_proj")
        True
        >>> Pattern("((.|.)*)*!").matches("layer" * 40)
        False
    """

    def __init__(self, pattern: str) -> None:
        if not isinstance(pattern, str):
            raise ValueError(f"it is a {type(pattern).__name__}, no text")
        if len(pattern) > MOST_CHARACTERS:
            raise ValueError(f"it has {len(pattern)} characters, {MOST_CHARACTERS} are the most")
        try:
            parsed = _parser.parse(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(str(error) or type(error).__name__) from error
        flags = parsed.state.flags & ~re.UNICODE
        if flags & ~re.IGNORECASE:
            raise ValueError("it sets flags; (?i) alone is known here")
        self._ignore_case = bool(flags & re.IGNORECASE)
        self._parts = parsed.data
        _check(self._parts, 0)

    def matches(self, text: str) -> bool:
        """Whether it matches the whole of a text."""
        ends = _Ends(text, self._ignore_case).of(self._parts, 1)
        return bool(ends >> len(text) & 1)


@lru_cache(maxsize=256)
def compiled(pattern: str) -> Pattern:
    """A pattern, read once.

    Raises:
        ValueError: It is none that can be matched here.
    """
    return Pattern(pattern)


class _Ends:
    """Where parts of a pattern may end in a text: sets of places, as the bits of a number."""

    def __init__(self, text: str, ignore_case: bool) -> None:
        self.text = text
        self.ignore_case = ignore_case
        self.known: dict[tuple[int, int], int] = {}

    def of(self, parts: Any, starts: int) -> int:
        """The ends of parts that follow each other."""
        for part in parts:
            if not starts:
                return 0
            starts = self._of_one(part, starts)
        return starts

    def _of_one(self, part: Any, starts: int) -> int:
        found = 0
        while starts:
            lowest = starts & -starts
            starts ^= lowest
            key = id(part), lowest.bit_length() - 1
            if key not in self.known:
                self.known[key] = self._from(part, key[1])
            found |= self.known[key]
        return found

    def _from(self, part: Any, start: int) -> int:
        kind, value = str(part[0]), part[1]
        here = 1 << start
        if kind == "BRANCH":
            ends = 0
            for way in value[1]:
                ends |= self.of(way, here)
            return ends
        if kind == "SUBPATTERN":
            return self.of(value[3], here)
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):
            return self._repeated(value[2], here, int(value[0]), int(value[1]))
        if kind in ("ASSERT", "ASSERT_NOT"):
            return here if bool(self.of(value[1], here)) == (kind == "ASSERT") else 0
        if kind == "AT":
            edge = 0 if str(value).startswith("AT_BEGINNING") else len(self.text)
            return here if start == edge else 0
        return here << 1 if start < len(self.text) and self._is_one(part, self.text[start]) else 0

    def _repeated(self, inner: Any, here: int, least: int, most: int) -> int:
        current = here
        for _ in range(min(least, len(self.text) + 1)):  # from then on the same places come again
            current = self.of(inner, current)
        ends, steps = current, min(most, least + len(self.text) + 1) - least
        for _ in range(steps):
            current = self.of(inner, current) & ~ends
            if not current:
                break
            ends |= current
        return ends

    def _is_one(self, part: Any, character: str) -> bool:
        if not self.ignore_case:
            return _is_one(part, character)
        return any(_is_one(part, c) for c in {character, character.lower(), character.upper()} if len(c) == 1)


def _is_one(part: Any, character: str) -> bool:
    """Whether a part that stands for one character stands for this one."""
    kind, value = str(part[0]), part[1]
    if kind == "LITERAL":
        return ord(character) == value
    if kind == "NOT_LITERAL":
        return ord(character) != value
    if kind == "ANY":
        return character != "\n"
    if kind == "RANGE":
        return value[0] <= ord(character) <= value[1]
    if kind == "CATEGORY":
        return re.fullmatch(_CLASSES[str(value).removeprefix("CATEGORY_")], character) is not None
    negated = str(value[0][0]) == "NEGATE"
    return any(_is_one(one, character) for one in value[negated:]) != negated


def _check(parts: Any, depth: int) -> None:
    """Refuse what is not matched here."""
    if depth > _DEEPEST:
        raise ValueError("its groups lie too deep in each other")
    for part in parts:
        kind, value = str(part[0]), part[1]
        if kind == "BRANCH":
            for way in value[1]:
                _check(way, depth + 1)
        elif kind == "SUBPATTERN":
            if value[1] or value[2]:
                raise ValueError("it sets flags for a part of it")
            _check(value[3], depth + 1)
        elif kind in ("MAX_REPEAT", "MIN_REPEAT"):
            if value[0] > _MOST_REPEATS:
                raise ValueError(f"it repeats a part {value[0]} times")
            _check(value[2], depth + 1)
        elif kind in ("ASSERT", "ASSERT_NOT"):
            if value[0] < 0:
                raise ValueError("it looks behind")
            _check(value[1], depth + 1)
        elif kind == "AT":
            if "BOUNDARY" in str(value):
                raise ValueError("it asks for the boundary of a word")
        elif kind not in _OF_ONE:
            raise ValueError(f"it holds {kind.lower()}, which is not matched here")
