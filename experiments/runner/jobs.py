"""Run jobs that wait for one another, side by side on the cores there are, with progress, and stop them all on Ctrl-C.

Every worker is a process of its own pool of one, so that a worker that is killed (out of memory) is told apart from the others,
and watches a pipe to the process that started it: where that one ends, however it ends, the workers end.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
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


def leave_out(done: Collection[str], jobs: Sequence[Job], data: Sequence[Job], label: str = "") -> list[Job]:
    """The jobs of one seed that are still to be done, none of them waiting for what is.

    Args:
        done: Names of jobs that are finished.
        jobs: Of the seed.
        data: Jobs that make the data, which seeds share; they come first where anything is to be done.
        label: Put before the names of the seed's jobs, where several seeds run together.

    Example:
        >>> first, second = Job("start", print), Job("MT", print, after=("read", "start"))
        >>> [(job.name, job.after) for job in leave_out({"start"}, [first, second], [Job("read", print)], "seed 0: ")]
        [('read', ()), ('seed 0: MT', ('read',))]
        >>> leave_out({"start", "MT"}, [first, second], [Job("read", print)])
        []
    """
    named = {job.name: label + job.name for job in jobs} | {job.name: job.name for job in data}
    left = [
        replace(job, name=named[job.name], after=tuple(named[name] for name in job.after if name not in done))
        for job in jobs
        if job.name not in done
    ]
    return [*data, *left] if left else []


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
        WorkerLostError: The process of a job was killed; names the job.
    """
    waiting = {job.name: job for job in jobs}
    unknown = [name for job in jobs for name in job.after if name not in waiting]
    if unknown:
        raise ValueError(f"jobs wait for {unknown[0]!r}, which is none of them: {list(waiting)}.")
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks of the parent's threads
    messages = context.Queue()
    alive, held = context.Pipe(duplex=False)
    lanes = [
        ProcessPoolExecutor(1, context, _start_worker, (messages, alive))
        for _ in range(min(workers or os.cpu_count() or 1, len(jobs)))
    ]
    try:
        _drive(lanes, waiting, messages, display)
    finally:
        held.close()  # whatever they do, the workers end
        for lane in lanes:
            lane.shutdown(cancel_futures=True)
        alive.close()
        messages.close()


def run_here(jobs: Sequence[Job], display: Display) -> None:
    """Run every job in this process, one after another: for rows that have a GPU, or all cores and readers, for themselves.

    Args:
        jobs: In order of preference: of those that can start, the first one does.
        display: Shows progress.

    Raises:
        ValueError: A job waits for one that is not there, or jobs wait for each other.

    Example:
        >>> class Silent:
        ...     def update(self, name, done, total): pass
        >>> def show(name, report): print(name)
        >>> run_here([Job("two", show, ("two",), after=("one",)), Job("one", show, ("one",))], Silent())
        one
        two
    """
    waiting = {job.name: job for job in jobs}
    ended: set[str] = set()
    while waiting:
        job = next((job for job in waiting.values() if ended.issuperset(job.after)), None)
        if job is None:
            raise ValueError(f"jobs wait for what is not there, or for each other: {list(waiting)}.")
        del waiting[job.name]
        display.update(job.name, 0, 0)
        job.work(*job.arguments, partial(display.update, job.name))
        ended.add(job.name)
        display.update(job.name, 1, 1)


class WorkerLostError(RuntimeError):
    """A worker ended in the middle of a job, and not by an error of the job."""


def _drive(lanes: list[ProcessPoolExecutor], waiting: dict[str, Job], messages: Any, display: Display) -> None:
    running: dict[str, tuple[ProcessPoolExecutor, Future[None]]] = {}
    free = list(lanes)
    alone = False
    ended: set[str] = set()
    while waiting or running:
        ready = [job for job in waiting.values() if ended.issuperset(job.after)]
        if not ready and not running:
            raise ValueError(f"jobs wait for each other: {list(waiting)}.")
        for job in ready:
            if not free or (running and (alone or job.alone)):
                break
            alone = job.alone
            del waiting[job.name]
            lane = free.pop(0)
            running[job.name] = lane, lane.submit(_work, job)
            display.update(job.name, 0, 0)
        _show(messages, display, seconds=0.2)
        for name in [name for name, (_, result) in running.items() if result.done()]:
            lane, result = running.pop(name)
            _check_alive(name, result)
            free.append(lane)
            ended.add(name)
            _show(messages, display, seconds=0.0)
            display.update(name, 1, 1)


def _check_alive(name: str, result: Future[None]) -> None:
    """Raise the error of a job, or that its worker is gone."""
    try:
        result.result()
    except BrokenProcessPool as error:
        raise WorkerLostError(
            f"the worker of the job {name!r} was killed, by the system for want of memory perhaps. The other jobs are stopped; "
            "what is finished is kept, and the same command goes on from there. With fewer workers each has more memory."
        ) from error


def _show(messages: Any, display: Display, seconds: float) -> None:
    """Show what has come in; wait for the first message at most so long."""
    try:
        display.update(*messages.get(timeout=seconds) if seconds else messages.get_nowait())
        while True:
            display.update(*messages.get_nowait())
    except queue.Empty:
        pass


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Numbers that glibc's malloc.h has for them."""

_messages: Any = None  # of this worker, set once when it starts


def _start_worker(messages: Any, alive: Connection) -> None:
    global _messages
    _messages = messages
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _keep_freed_memory()
    import torch

    torch.set_num_threads(1)


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one: giving it back and asking again takes a third of a step of ViT-S."""
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    if change is not None:
        change(_MMAP_THRESHOLD, 1 << 25)  # the most that it takes
        change(_TRIM_THRESHOLD, (1 << 31) - 1)


def _end_with_parent(alive: Connection) -> None:
    """Nothing is ever sent: the pipe ends with the process that holds its other end, and this one with it."""
    try:
        alive.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _work(job: Job) -> None:
    job.work(*job.arguments, lambda done, total: _messages.put((job.name, done, total)))
