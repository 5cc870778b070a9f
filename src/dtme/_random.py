"""Random numbers that are drawn aside: those who draw after find the generators as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def random_numbers_aside(seed: int | None = None) -> Iterator[None]:
    """Give Python's, NumPy's and torch's generators back their states at the end.

    Args:
        seed: Of torch's generators meanwhile; `None` lets them go on from where they are.

    Example:
        >>> before = torch.get_rng_state()
        >>> with random_numbers_aside(seed=0):
        ...     first = torch.rand(2)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    numpy: Any = sys.modules.get("numpy")
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    python, cpu = random.getstate(), torch.get_rng_state()
    arrays = None if numpy is None else numpy.random.get_state()
    devices = torch.cuda.get_rng_state_all() if cuda else []
    try:
        if seed is not None:
            torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if numpy is not None:
            numpy.random.set_state(arrays)
        if cuda:
            torch.cuda.set_rng_state_all(devices)
