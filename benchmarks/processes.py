"""Several processes (gloo): the processor time of the busiest of them against that of one which reads all batches.

Where there are fewer cores than processes the wall clock cannot show what each is spared; its own processor time can, the
waiting for others left out and the exchange with them included.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

import dtme
from benchmarks.subject import Size, task_losses


def speed_up(processes: int, batches: int = 8) -> float:
    """How many times as fast the busiest of several processes is done."""
    return max(_busy(1, batches)) / max(_busy(processes, batches))


def _busy(processes: int, batches: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        queue: Any = context.SimpleQueue()
        args = (processes, batches, str(Path(folder) / "meet"), queue)
        crew = [context.Process(target=_share, args=(rank, *args)) for rank in range(processes)]
        for process in crew:
            process.start()
        taken = [queue.get() for _ in crew]
        for process in crew:
            process.join()
    return taken


def _share(rank: int, processes: int, batches: int, meet: str, queue: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=processes)
    size = Size()
    model, share = size.model(), [size.batch(seed) for seed in range(rank, batches, processes)]
    dtme.analyze(model, task_losses, share[:1])
    start = time.process_time()
    dtme.analyze(model, task_losses, share, max_samples=None)
    queue.put(time.process_time() - start)
    distributed.destroy_process_group()
