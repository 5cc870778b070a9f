"""Where the entries of a figure's key stand."""

from __future__ import annotations

from collections.abc import Iterable


def key_rows(widths: Iterable[float], room: float, between: float = 0.25) -> list[tuple[float, int]]:
    """Where each entry begins and in which row: from left to right, in a new row where the room ends.

    Args:
        widths: Of the entries, in inches.
        room: Width of a row; an entry wider than that has a row to itself.
        between: What is left free between two entries.

    Example:
        >>> key_rows([2.0, 1.0, 2.0], room=3.5)
        [(0.0, 0), (2.25, 0), (0.0, 1)]
    """
    places: list[tuple[float, int]] = []
    free, row = 0.0, 0
    for width in widths:
        if free and free + width > room:
            free, row = 0.0, row + 1
        places.append((free, row))
        free += width + between
    return places
