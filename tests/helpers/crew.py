"""Processes in one gloo group that run what tests send them; started once, since starting them is what costs."""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


class Crew:
    """So many processes; each runs the same function and answers with what it returned."""

    def __init__(self, size: int, timeout: float = 180.0):
        self.size, self.timeout = size, timeout
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []

    def run(self, job: Callable[..., Any], *args: Any, timeout: float | None = None) -> list[Any]:
        """`job(rank, *args)` in every process, a function that can be imported; what it returned, by rank.

        An error in any process is raised here. A crew that failed is let go, and the next run starts another.
        """
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((job, args))
        answers, waits = [], timeout or self.timeout
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(waits):
                self.stop()
                raise TimeoutError(f"rank {rank} gave no answer within {waits} s")
            answers.append(pipe.recv())
        broken = [f"rank {rank}:\n{text}" for rank, (text, _) in enumerate(answers) if text]
        if broken:
            self.stop()
            raise AssertionError("\n".join(broken))
        return [answer for _, answer in answers]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        for pipe in self.pipes:
            pipe.close()
        self.processes, self.pipes = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        store = Path(tempfile.mkdtemp()) / "meet"
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(
                target=_work, args=(rank, self.size, str(store), there, self.timeout), daemon=True
            )
            process.start()
            self.pipes.append(here)
            self.processes.append(process)


def _work(rank: int, size: int, store: str, pipe: Connection, timeout: float) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    while True:
        try:
            job, args = pipe.recv()
        except EOFError:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # heads that end in a view
                torch.manual_seed(0)
                answer = ("", job(rank, *args))
        except BaseException:
            answer = (traceback.format_exc(), None)
        pipe.send(answer)
