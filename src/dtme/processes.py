"""Several processes that work as one: each reads a share of the batches, and all hear of everything in the order of ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Timer
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Shared = TypeVar("Shared")
Own = TypeVar("Own")

PATIENCE = 30.0
"""Seconds that a process waits for the others before it says so."""


@dataclass(frozen=True)
class Processes:
    """The processes that take part in one analysis, and this one's place among them.

    Attributes:
        group: How they are reached; `None` where there is but this one.
        rank: Of this process, within the group.
        size: How many there are.
    """

    group: ProcessGroup | None = None
    rank: int = 0
    size: int = 1

    def exchange(self, compute: Callable[[], tuple[Shared, Own]]) -> tuple[list[Shared], Own]:
        """Compute something here and in every other process, and hear what all have found.

        Args:
            compute: Gives what the others are told, small and on the CPU, and what stays here. Nothing in it may wait for
                another process, unless every process gets there.

        Returns:
            What every process told, in the order of their ranks, and what this one kept.

        Raises:
            ValueError: `compute` raised one in some process; the same is raised in all and names the rank.
            RuntimeError: `compute` raised another error in some process.
        """
        if self.group is None:
            shared, own = compute()
            return [shared], own
        shared, own, fault, told = None, None, None, None
        try:
            shared, own = compute()
        except ValueError as error:
            fault, told = error, (ValueError, str(error))
        except Exception as error:
            fault, told = error, (RuntimeError, f"{type(error).__name__}: {error}")
        heard: list[Any] = [None] * self.size
        distributed.all_gather_object(heard, (shared, told), group=self.group)
        for rank, (_, failed) in enumerate(heard):
            if failed is not None:
                kind, message = failed
                raise kind(f"rank {rank} of {self.size}: {message}") from fault
        return [shared for shared, _ in heard], own  # pyright: ignore[reportReturnType]

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in each of them."""
        if self.group is None:
            return tensor
        sent = tensor.to(self._device(), copy=True)
        distributed.all_reduce(sent, group=self.group)
        return sent.to(tensor.device)

    def total_at(self, rank: int, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in one of them; what the others get means nothing."""
        if self.group is None:
            return tensor
        sent = tensor.to(self._device(), copy=True)
        distributed.reduce(sent, group=self.group, group_dst=rank)
        return sent.to(tensor.device)

    def from_first(self, tensor: Tensor) -> Tensor:
        """The tensor of the first process, in each of them."""
        if self.group is None:
            return tensor
        sent = tensor.to(self._device(), copy=True)
        distributed.broadcast(sent, group=self.group, group_src=0)
        return sent.to(tensor.device)

    def _device(self) -> torch.device:
        """Where tensors have to lie to be sent."""
        nccl = distributed.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def processes_of(group: ProcessGroup | Literal["alone"] | None) -> Processes:
    """The processes of a group; of the default group for `None`, and this one alone where there is no such group.

    Raises:
        ValueError: This process does not belong to the group, or `group` is something else.

    Example:
        >>> processes_of(None).size
        1
    """
    if isinstance(group, str) and group != "alone":
        raise ValueError(f"process_group={group!r}: give a process group, None for the default group, or 'alone'.")
    if group == "alone" or not (distributed.is_available() and distributed.is_initialized()):
        return Processes()
    chosen = distributed.group.WORLD if group is None else group
    rank = distributed.get_rank(chosen) if isinstance(chosen, distributed.ProcessGroup) else -1
    if rank < 0 or chosen is None:
        raise ValueError(
            f"process_group={group!r}: this process does not belong to it. Call analyze in its members only, or say "
            "process_group='alone'."
        )
    size = distributed.get_world_size(chosen)
    return Processes(chosen, rank, size) if size > 1 else Processes()


@contextmanager
def patience(processes: Processes) -> Iterator[None]:
    """Say so where the others keep this process waiting at their first meeting."""
    timer = Timer(PATIENCE, _still_waiting, [processes])
    timer.daemon = True
    if processes.size > 1:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _still_waiting(processes: Processes) -> None:
    logging.getLogger("dtme").warning(
        "rank %d still waits for the other %d processes to call analyze. Is it called in this one only? Then say "
        "process_group='alone'.",
        processes.rank,
        processes.size - 1,
    )


@dataclass(frozen=True)
class Step:
    """One batch of each process.

    Attributes:
        number: Of the batch, within this process.
        batch: What this process runs the model on, if it does.
        reading: Whether each process has a batch that counts.
        runs: Whether this process runs the model.
    """

    number: int
    batch: Any
    reading: tuple[bool, ...]
    runs: bool


def steps(processes: Processes, batches: Iterable[Any], *, sharded: bool) -> Iterator[Step]:
    """One batch of each process at a time, until all have run out of them.

    Where the model is sharded over the processes, none of them can run it without the others: one that has run out runs
    its last batch again, uncounted.

    Example:
        >>> [(step.number, step.batch) for step in steps(Processes(), "ab", sharded=False)]
        [(0, 'a'), (1, 'b')]
    """
    iterator: Iterator[Any] | None = None
    batch, number, out = None, -1, False

    def fetch() -> tuple[tuple[bool, bool], tuple[Any, bool]]:
        nonlocal iterator
        iterator = iter(batches) if iterator is None else iterator
        for found in () if out else iterator:
            return (True, True), (found, True)
        return (False, number >= 0), (batch, False)

    while True:
        told, (batch, own) = processes.exchange(fetch)
        out = not own
        reading = tuple(reads for reads, _ in told)
        if not any(reading):
            return
        idle = [rank for rank, (_, has_read) in enumerate(told) if not has_read]
        if sharded and idle:
            raise ValueError(
                f"rank {idle[0]} of {processes.size} has no batch, and the model is sharded: it runs in all processes or in "
                "none. Give every process at least one batch."
            )
        number += own
        yield Step(number, batch, reading, own or sharded)
