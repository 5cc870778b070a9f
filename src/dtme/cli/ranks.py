"""Several processes under torchrun: each reads its share of the batches, and the first one writes and prints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any


def size() -> int:
    """How many processes torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The place of this process among them."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


@contextmanager
def joined() -> Iterator[None]:
    """The processes as one group while the context lasts; nothing where there is but one."""
    if size() == 1:
        yield
        return
    import torch
    from torch import distributed

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


class _Share:
    """Every `size`-th batch, from the `rank`-th on, each time it is read."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return islice(self.batches, rank(), None, size())


def share_of(batches: Iterable[Any]) -> Iterable[Any]:
    """The batches that this process reads: together all of them, in turn.

    Example:
        >>> share_of([1, 2, 3])
        [1, 2, 3]
    """
    if size() == 1:
        return batches
    once = hasattr(batches, "__next__")  # what can be read only once must look like it
    return iter(_Share(batches)) if once else _Share(batches)
