"""Time and memory, measured so that what else the machine does falls on all alike.

Without a GPU the clock is the processor time of this process, on one thread: what others do meanwhile is not counted, though
they still share caches and memory. With one it is the wall's, from one synchronisation to the next. Things to compare run in
turn, and a ratio is the median of the ratios within a turn.
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Work = Callable[[], Any]
CLOCK = "wall clock" if torch.cuda.is_available() else "processor time, one thread"


def seconds(work: Work) -> float:
    """Processor time of one call; on a GPU, the time until it is done."""
    if not torch.cuda.is_available():
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Middle:
    """A median and the quartiles beside it.

    Attributes:
        low: First quartile.
        value: Median.
        high: Third quartile.
    """

    low: float
    value: float
    high: float

    def times(self, factor: float) -> Middle:
        """All three times a factor."""
        return Middle(self.low * factor, self.value * factor, self.high * factor)


def middle(values: list[float]) -> Middle:
    """The median of some values, and their quartiles."""
    low, value, high = statistics.quantiles(values, n=4)
    return Middle(low, value, high)


def once(value: float) -> Middle:
    """What is the same at every turn, as bytes are, or is measured only once."""
    return Middle(value, value, value)


@dataclass(frozen=True)
class Turns:
    """Seconds of several works, turn by turn."""

    taken: list[dict[str, float]]

    def ratio(self, one: str, other: str) -> Middle:
        """How long one takes as a multiple of the other."""
        return middle([turn[one] / turn[other] for turn in self.taken])

    def of(self, name: str) -> float:
        """Median seconds of one."""
        return statistics.median(turn[name] for turn in self.taken)


def in_turn(works: Mapping[str, Work], turns: int) -> Turns:
    """Run works one after the other, again and again; a first turn does not count."""
    for work in works.values():
        work()
    return Turns([{name: seconds(work) for name, work in works.items()} for _ in range(turns)])


def peak_bytes(work: Work) -> int:
    """The most memory that tensors made during a call take at one time, beyond what there was before."""
    work()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with Live() as live:
        work()
    return live.most


class Live(TorchDispatchMode):
    """Adds up the storages that operations make, for as long as they live.

    Attributes:
        most: The most bytes at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = self.now = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
        output = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(output):
            if isinstance(tensor, Tensor) and not any(tensor is given for given in pytree.tree_leaves(args)):
                self._count(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def let_go(_: Any) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, let_go)
        self.now += size


def seconds_of_help(turns: int = 3) -> float:
    """Processor time of `dtme --help` and of the Python that starts for it, the least of some turns."""
    taken = []
    for _ in range(turns):
        before = os.times()
        subprocess.run([sys.executable, "-m", "dtme", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(taken)


def import_beyond_torch(turns: int = 3) -> float:
    """Processor time of `import dtme` and of every public name, which load when asked for, where torch is loaded already."""
    code = (
        "import time, torch; begun = time.process_time(); import dtme; "
        "[getattr(dtme, name) for name in dtme.__all__]; print(time.process_time() - begun)"
    )
    return min(float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(turns))
