"""Run jobs that wait for one another, side by side on the cores there are, with progress, and stop them all on Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult
from typing import Any, Protocol

Report = Callable[[int, int], None]
"""Told how much of a job is done, and of how much."""


@dataclass(frozen=True)
class Job:
    """Work for one process.

    Attributes:
        name: As progress shows it.
        work: Called as `work(*arguments, report)` in a worker; both are sent there, so functions of a module and plain data.
        arguments: Of `work`.
        after: Names of the jobs that must have ended.
        alone: Nothing runs beside it, since it takes time.
    """

    name: str
    work: Callable[..., None]
    arguments: tuple[Any, ...] = ()
    after: tuple[str, ...] = ()
    alone: bool = False


class Display(Protocol):
    """What shows progress."""

    def update(self, name: str, done: int, total: int) -> None:
        """A job has come so far."""
        ...


def run(jobs: Sequence[Job], display: Display, *, workers: int | None = None) -> None:
    """Run every job once those it waits for have ended; the first error stops all and is raised.

    Args:
        jobs: In order of preference: of those that can start, the first one does.
        display: Shows progress.
        workers: Processes, each with one thread of computation; by default one per core.

    Raises:
        ValueError: A job waits for one that is not there, or jobs wait for each other.
    """
    waiting = {job.name: job for job in jobs}
    unknown = [name for job in jobs for name in job.after if name not in waiting]
    if unknown:
        raise ValueError(f"jobs wait for {unknown[0]!r}, which is none of them: {list(waiting)}.")
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks of the parent's threads
    messages = context.Queue()
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    pool = context.Pool(workers, _start_worker, (messages,))
    try:
        _drive(pool, waiting, messages, display, workers)
        pool.close()
    finally:
        pool.terminate()
        pool.join()


def _drive(pool: Any, waiting: dict[str, Job], messages: Any, display: Display, workers: int) -> None:
    running: dict[str, AsyncResult[None]] = {}
    alone = False
    ended: set[str] = set()
    while waiting or running:
        ready = [job for job in waiting.values() if ended.issuperset(job.after)]
        if not ready and not running:
            raise ValueError(f"jobs wait for each other: {list(waiting)}.")
        for job in ready:
            if len(running) == workers or (running and (alone or job.alone)):
                break
            alone = job.alone
            del waiting[job.name]
            running[job.name] = pool.apply_async(_work, (job,))
            display.update(job.name, 0, 0)
        _show(messages, display, seconds=0.2)
        for name in [name for name, result in running.items() if result.ready()]:
            running.pop(name).get()
            ended.add(name)
            _show(messages, display, seconds=0.0)
            display.update(name, 1, 1)


def _show(messages: Any, display: Display, seconds: float) -> None:
    """Show what has come in; wait for the first message at most so long."""
    try:
        display.update(*messages.get(timeout=seconds) if seconds else messages.get_nowait())
        while True:
            display.update(*messages.get_nowait())
    except queue.Empty:
        pass


_messages: Any = None  # of this worker, set once when it starts


def _start_worker(messages: Any) -> None:
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the workers
    import torch

    torch.set_num_threads(1)


def _work(job: Job) -> None:
    job.work(*job.arguments, lambda done, total: _messages.put((job.name, done, total)))
