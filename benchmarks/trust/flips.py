"""One flipped bit in what was written: no file that carries a digest is taken for what it was."""

from __future__ import annotations

import random
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from benchmarks.trust.specimens import SPECIMENS


def run(seconds: float, seed: int) -> tuple[Counter[str], list[str]]:
    """Flip for so long, every kind of file in turn.

    Returns:
        Flips by file, and those that were taken in silence.
    """
    chance, until = random.Random(seed), time.monotonic() + seconds
    flips: Counter[str] = Counter()
    silent: list[str] = []
    with tempfile.TemporaryDirectory() as root:
        kinds = [one for one in SPECIMENS if one.digested]
        folders = {one.name: Path(root) / str(place) for place, one in enumerate(kinds)}
        for one in kinds:
            folders[one.name].mkdir()
            one.write(folders[one.name])
        whole = {one.name: (folders[one.name] / one.name).read_bytes() for one in kinds}
        while time.monotonic() < until:
            for one in kinds:
                place = chance.randrange(8 * len(whole[one.name]))
                flipped = bytearray(whole[one.name])
                flipped[place // 8] ^= 1 << place % 8
                (folders[one.name] / one.name).write_bytes(flipped)
                flips[one.name] += 1
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        one.read(folders[one.name])
                except ValueError:
                    continue
                silent.append(f"{one.name}, bit {place}")
    return flips, silent
