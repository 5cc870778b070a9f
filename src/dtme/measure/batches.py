"""The batches of an analysis: one of each process at a time, in two rounds, and how many of them are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from dtme._pytree import tensors_of
from dtme.distributed.processes import Processes
from dtme.measure.capture import Capture, TokenMask
from dtme.measure.eval_mode import differentiable_batch
from dtme.measure.losses import TaskChoice, TaskLosses, check_losses

Progress = Callable[[Sequence[Any] | Iterable[Any], str], Iterable[Any]]

LEVEL, SAMPLES = 0.95, 512
"""Where an analysis stops that was told nothing: the choice of blocks settled at this level, or so many samples."""

FEWEST = 16
"""Samples of each task that the default reads, however rare it is."""

MOMENT_SAMPLES = 192
"""Samples for the token space when the analysis may stop early; more move the rates by about 0.001."""


@dataclass(frozen=True)
class Limits:
    """When an analysis reads no further.

    Attributes:
        confidence: As soon as the choice of blocks of the default plan is settled at this level; `None` is never.
        max_samples: After so many samples over all processes; `None` is never.
        default: Neither was asked for. Then tasks that share no input are not judged by the first samples of one of them:
            `max_samples` of each are read.
    """

    confidence: float | None
    max_samples: int | None
    default: bool = False

    @classmethod
    def of(cls, confidence: float | None, max_samples: int | Literal["auto"] | None) -> Limits:
        """The limits that two arguments of `analyze` stand for.

        Example:
            >>> Limits.of(None, "auto")
            Limits(confidence=0.95, max_samples=512, default=True)
            >>> Limits.of(0.9, "auto"), Limits.of(None, None)
            (Limits(confidence=0.9, max_samples=None, default=False), Limits(confidence=None, max_samples=None, default=False))
        """
        if confidence is not None and not 0 < confidence < 1:
            raise ValueError(f"confidence={confidence}: give a level between 0 and 1, such as 0.95, or None.")
        if max_samples == "auto":
            return cls(LEVEL, SAMPLES, default=True) if confidence is None else cls(confidence, None)
        if max_samples is not None and (isinstance(max_samples, str) or not max_samples >= 1):
            raise ValueError(f"max_samples={max_samples!r}: give at least 1, None for all, or 'auto'.")
        return cls(confidence, max_samples)

    def end_first_round(self, read: Mapping[str, int], samples: int, *, all_meet: bool, at_least: float) -> bool:
        """Whether enough is known of the token spaces and of which tasks there are.

        Args:
            read: Samples of each task met.
            samples: All of them.
            all_meet: Whether each two tasks were on one batch.
            at_least: Samples to wait for another task: 0 where none is missing.
        """
        if not self.default and self.max_samples is not None and samples >= self.max_samples:
            return True
        if all_meet and len(read) > 1:
            return self.confidence is not None and samples >= max(MOMENT_SAMPLES, at_least)
        return self.default and len(read) > 1 and at_least == 0 and self._enough_of_each(read)

    def end_second_round(self, read: Mapping[str, int], samples: int, *, all_meet: bool) -> bool:
        """Whether no more samples may be compared."""
        if self.max_samples is None:
            return False
        if not self.default:
            return samples >= self.max_samples
        return samples >= self.max_samples and min(read.values()) >= FEWEST if all_meet else self._enough_of_each(read)

    def _enough_of_each(self, read: Mapping[str, int]) -> bool:
        return self.max_samples is not None and all(samples >= self.max_samples for samples in read.values())

    def describe_end(self, moments: int, compared: int, why: str, skipped: int) -> str:
        """How many samples were read, and why no more, in a sentence.

        Args:
            moments: Samples read for the token space.
            compared: Samples read for the conflicts.
            why: What ended the second round: the choice was `"settled"`, samples were `"enough"`, or `"all"` were read.
            skipped: Batches without samples.

        Example:
            >>> Limits.of(None, "auto").describe_end(192, 512, "enough", 0)
            'Read: 192 samples for the token space, 512 for conflicts, the default; max_samples=None reads all.'
        """
        ends = {
            "settled": f"until the choice of blocks was settled at {self.confidence or 0:.0%}",
            "enough": "the default; max_samples=None reads all" if self.default else f"max_samples={self.max_samples}",
            "all": "all there are",
        }
        empty = f" Skipped: {skipped} {'batches' if skipped > 1 else 'batch'} without samples." if skipped else ""
        return f"Read: {moments} samples for the token space, {compared} for conflicts, {ends[why]}.{empty}"

    def __str__(self) -> str:
        """What may have ended the reading; empty if nothing."""
        if self.default:
            return f"the default, {SAMPLES} samples or a settled choice"
        named = {"confidence": self.confidence, "max_samples": self.max_samples}
        return " or ".join(f"{name}={limit}" for name, limit in named.items() if limit is not None)


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


class Steps:
    """One batch of each process at a time, until all have run out of them; batches without samples are skipped.

    Where the model is sharded over the processes, none of them can run it without the others: one that has run out runs
    its last batch again, uncounted.

    Attributes:
        skipped: Batches without samples, in all processes so far.

    Raises:
        ValueError: No batch at all, or none with samples; a sharded model, and a process without any.

    Example:
        >>> [(step.number, step.batch) for step in Steps(Processes(), "ab", sharded=False)]
        [(0, 'a'), (1, 'b')]
    """

    def __init__(self, processes: Processes, batches: Iterable[Any], *, sharded: bool) -> None:
        self.processes, self.batches, self.sharded = processes, batches, sharded
        self.skipped = 0

    def __iter__(self) -> Iterator[Step]:
        iterator: Iterator[Any] | None = None
        batch, number, out, empty, any_read = None, -1, False, 0, False

        def fetch() -> tuple[tuple[bool, bool, int], tuple[Any, bool]]:
            nonlocal iterator, number, empty
            iterator = iter(self.batches) if iterator is None else iterator
            for found in () if out else iterator:
                number += 1
                if not is_empty(found):
                    return (True, True, empty), (differentiable_batch(found), True)
                empty += 1
            return (False, number >= empty, empty), (batch, False)

        while True:
            told, (batch, own) = self.processes.exchange(fetch)
            out, self.skipped = not own, sum(skipped for _, _, skipped in told)
            reading = tuple(reads for reads, _, _ in told)
            if not any(reading):
                break
            any_read = True
            idle = [rank for rank, (_, has_read, _) in enumerate(told) if not has_read]
            if self.sharded and idle:
                raise ValueError(
                    f"rank {idle[0]} of {self.processes.size} has no batch, and the model is sharded: it runs in all processes "
                    "or in none. Give every process at least one batch."
                )
            yield Step(number, batch, reading, own or self.sharded)
        if not any_read:
            why = f"none of the {self.skipped} batches holds a sample" if self.skipped else "batches is empty"
            raise ValueError(
                f"{why}: analyze needs at least one batch. An exhausted iterator? Pass a list or a loader."
            )


@dataclass(frozen=True)
class Reading:
    """The batches of this process, and what is asked about each of them in either round.

    Attributes:
        model: The model, or the wrapper that holds it.
        task_losses: As given to `analyze`.
        batches: What can be read once for each round.
        token_mask: As given to `analyze`.
        progress: Wraps each round in the first process.
        processes: That read together.
        sharded: Whether they hold one model together.
        limits: How many samples are read.
        choice: The tasks and branches that were named.
        first: The first batch that gave losses here.
    """

    model: nn.Module
    task_losses: TaskLosses
    batches: Iterable[Any]
    token_mask: TokenMask | None
    progress: Progress | None
    processes: Processes
    sharded: bool
    limits: Limits
    choice: TaskChoice
    first: list[Any] = field(default_factory=list)

    def steps(self, what: str) -> Steps:
        """One round over the batches of all processes."""
        shown = self.progress if self.processes.rank == 0 else None
        batches = self.batches if shown is None else shown(self.batches, what)
        return Steps(self.processes, batches, sharded=self.sharded)

    def counts(self, step: Step) -> bool:
        """Whether the batch of a step is this process's own, and not there to keep others company."""
        return step.reading[self.processes.rank]

    def losses(self, step: Step, caught: Capture, expected: tuple[str, ...] | None) -> dict[str, Tensor]:
        """Each task's loss on the batch of a step, if there is one."""
        caught.clear()
        if not step.runs:
            return {}
        wanted = self.choice.tasks
        losses = check_losses(
            self.model, self.task_losses, step.batch, step.number, caught, wanted=wanted, expected=expected
        )
        if losses and not self.first:
            self.first.append(step.batch)
        return losses


def check_alike(tasks: Sequence[tuple[str, ...]], step: Step) -> None:
    """Processes that share a sharded model go back through it together, task by task."""
    for rank, theirs in enumerate(tasks):
        if theirs != tasks[0]:
            raise ValueError(
                f"rank 0 and rank {rank} have losses for {tasks[0]} and {theirs} at step {step.number}, and the model is "
                "sharded: every backward pass runs in all processes or in none. Let all processes read the same tasks, in the "
                "same order, at the same step."
            )


def is_empty(batch: Any) -> bool:
    """Whether a batch holds tensors, and no sample in any of them.

    Example:
        >>> import torch
        >>> is_empty({"image": torch.zeros(0, 3, 8, 8), "scale": torch.tensor(2.0)}), is_empty([torch.zeros(1, 2)])
        (True, False)
    """
    sizes = [len(tensor) for tensor in tensors_of(batch) if tensor.ndim > 0]
    return bool(sizes) and not any(sizes)


class Replayed:
    """Batches that can be read only once: what a round has read is kept for the next, which goes on from there.

    Example:
        >>> batches = Replayed(iter("abc"))
        >>> first = next(iter(batches))
        >>> first, list(batches)
        ('a', ['a', 'b', 'c'])
    """

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._kept: list[Any] = []
        self._rounds = 0

    def __iter__(self) -> Iterator[Any]:
        self._rounds += 1
        yield from self._kept
        for batch in self._iterator:
            if self._rounds == 1:  # nobody reads a third time
                self._kept.append(batch)
            yield batch


def rereadable(batches: Iterable[Any]) -> Iterable[Any]:
    """Batches that can be read in two rounds."""
    return Replayed(batches) if isinstance(batches, Iterator) else batches
