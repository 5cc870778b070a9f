"""How far a reading is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

EVERY = 10.0
"""Seconds between two lines of a log."""


def show_progress(batches: Iterable[Any], what: str) -> Iterator[Any]:
    """Hand batches on and tell of them on standard error, as `analyze(progress=...)` takes it.

    Args:
        batches: Of one round.
        what: What the round is for.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(batches, what, console=Console(stderr=True), transient=True)
        return
    begun = told = time.monotonic()
    number = 0
    try:
        for number, batch in enumerate(batches, 1):
            yield batch
            if time.monotonic() - told > EVERY:
                told = time.monotonic()
                print(f"{what}: batch {number}, {told - begun:.0f} s", file=sys.stderr, flush=True)
    finally:
        print(f"{what}: {number} batches in {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
