"""The one source of chance of a scene's layout."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Random draws that are a function of (seed, scene) alone.

    Only `Random.random` is used, the one draw that Python promises to keep from version to version.

    Example:
        >>> Dice(0, 7).between(2.0, 3.0) == Dice(0, 7).between(2.0, 3.0)
        True
    """

    def __init__(self, seed: int, scene: int) -> None:
        self._random = random.Random(f"dtme scenes {seed} {scene}").random

    def between(self, low: float, high: float) -> float:
        """A uniform draw from [low, high)."""
        return low + (high - low) * self._random()

    def count(self, low: int, high: int) -> int:
        """A uniform whole number from low to high, both included."""
        return low + int((high - low + 1) * self._random())

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return choices[int(len(choices) * self._random())]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        rest = list(items)
        return [rest.pop(int(len(rest) * self._random())) for _ in items]
