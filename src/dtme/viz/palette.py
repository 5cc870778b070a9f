"""The colours of every figure: apart from one another for all common kinds of colour vision, and readable on white."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle

import numpy as np
from matplotlib.colors import to_rgb

PAPER = "#ffffff"
INK = "#1d2733"
MUTED = "#566270"
FAINT = "#dfe4ea"
BLOCK = "#eef1f5"
SHARED = "#8592a3"  # a stream that serves several tasks

QUALITATIVE = (
    "#0072b2",
    "#d55e00",
    "#00a779",
    "#651a52",
    "#503500",
    "#02a1b3",
    "#4320ab",
    "#ff1856",
    "#243182",
    "#a10442",
    "#007bff",
)
"""Eleven colours, as many as the tasks of Taskonomy. Each has a contrast of 3 or more to white."""

METHODS = {"ST": "#566270", "MT": "#0072b2", "TM": "#00a779", "TE": "#651a52", "TM+TE": "#d55e00"}

RATES = "viridis"


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, those of `METHODS` in every figure the same; all differ until none is left.

    Example:
        >>> colours(["MT", "MT 2x", "TM"])
        {'MT': '#0072b2', 'MT 2x': '#d55e00', 'TM': '#00a779'}
    """
    names = list(names)
    taken = {METHODS[name] for name in names if name in METHODS}
    free = cycle(colour for colour in QUALITATIVE if colour not in taken)
    return {name: METHODS[name] if name in METHODS else next(free) for name in names}


def contrast(first: Sequence[float], second: Sequence[float]) -> float:
    """Contrast of two RGB colours as WCAG 2 defines it, 1 to 21.

    Example:
        >>> contrast((0, 0, 0), (1, 1, 1))
        21.0
    """
    weights = np.array([0.2126, 0.7152, 0.0722])
    rgb = np.array([first[:3], second[:3]], dtype=float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    darker, lighter = sorted(linear @ weights)
    return float((lighter + 0.05) / (darker + 0.05))


def ink_on(colour: Sequence[float]) -> str:
    """White on dark and middle colours, which the eye prefers to dark on middle ones; dark on light colours."""
    return PAPER if contrast(to_rgb(PAPER), colour) > 3.3 else INK
