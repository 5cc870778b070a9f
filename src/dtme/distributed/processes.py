"""Several processes that work as one: each reads a share of the batches, and all hear of everything in the order of ranks."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Shared = TypeVar("Shared")
Own = TypeVar("Own")

PATIENCE = 30.0
"""Seconds that a process waits for the others before it says so."""

ROLL_CALL = 5.0
"""Seconds that the processes of a group have to say that they are there, once one is lost."""

_LOST = re.compile(r"closed by peer|connection|timed out|timeout|socket|broken pipe|nccl|gloo", re.IGNORECASE)
"""What the backends call it when another process is gone."""


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
            RuntimeError: `compute` raised another error in some process, or one of them is gone; its rank is named.
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
        with self._meeting():
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
        with self._meeting():
            distributed.all_reduce(sent, group=self.group)
        return sent.to(tensor.device)

    def all_agree(self, agrees: bool) -> bool:
        """Whether something holds in every process."""
        return float(self.total(torch.tensor(0.0 if agrees else 1.0))) == 0

    def total_at(self, rank: int, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in one of them; what the others get means nothing."""
        if self.group is None:
            return tensor
        sent = tensor.to(self._device(), copy=True)
        with self._meeting():
            distributed.reduce(sent, group=self.group, group_dst=rank)
        return sent.to(tensor.device)

    def from_first(self, tensor: Tensor) -> Tensor:
        """The tensor of the first process, in each of them."""
        if self.group is None:
            return tensor
        sent = tensor.to(self._device(), copy=True)
        with self._meeting():
            distributed.broadcast(sent, group=self.group, group_src=0)
        return sent.to(tensor.device)

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """Wait for the others: say so where they let this process wait, and which of them is gone where one is."""
        try:
            with patience(self):
                yield
        except RuntimeError as error:
            if isinstance(error, distributed.DistBackendError | distributed.DistNetworkError) or _LOST.search(
                str(error)
            ):
                raise RuntimeError(self._describe_loss(error)) from error
            raise

    def _describe_loss(self, error: RuntimeError) -> str:
        """Which ranks are gone: those that, unlike this one, do not report within some seconds that they are there."""
        left = _missing(self)
        who = f"rank {', '.join(map(str, left))} is gone or stuck" if left else "another process is gone or stuck"
        return (
            f"rank {self.rank} of {self.size}: {who}, and the others cannot go on without it. Look for its own error, or for a "
            f"kill (want of memory, say) in its log; then start all of them again. ({_first_line(error)})"
        )

    def _device(self) -> torch.device:
        """Where tensors have to lie to be sent."""
        nccl = distributed.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def _missing(processes: Processes) -> list[int]:
    """The ranks of a group that do not answer by the store that all of its processes have met at."""
    group: Any = processes.group
    try:
        store = distributed.distributed_c10d._get_default_store()
        mark = f"dtme/alive/{getattr(group, 'group_name', '')}"
        store.set(f"{mark}/{processes.rank}", "yes")
    except (RuntimeError, ValueError):  # who kept the store is gone: the first process of all
        return [0] if processes.rank else []
    until = time.monotonic() + ROLL_CALL
    left = [rank for rank in range(processes.size) if rank != processes.rank]
    while left and time.monotonic() < until:
        try:
            left = [rank for rank in left if not store.check([f"{mark}/{rank}"])]
        except (RuntimeError, ValueError):
            return [0] if processes.rank else left
        time.sleep(0.05)
    return left


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
    """Say so where the others keep this process waiting, at whichever meeting, and again as often as they go on."""
    if processes.size == 1:
        yield
        return
    arrived = threading.Event()
    watch = threading.Thread(target=_watch, args=(processes, arrived), daemon=True)
    watch.start()
    try:
        yield
    finally:
        arrived.set()
        watch.join()  # a thread that Python ends by force, as the process does, ends the process with it


def _watch(processes: Processes, arrived: threading.Event) -> None:
    waited = 0.0
    while not arrived.wait(PATIENCE):
        waited += PATIENCE
        logging.getLogger("dtme").warning(
            "rank %d has waited %.0f s for the other %d processes. Is analyze called in this one only? Then say "
            "process_group='alone'. Is another one stuck, or its batch that large? Look at what each of them does (py-spy dump).",
            processes.rank,
            waited,
            processes.size - 1,
        )
