"""The analysis (Alg. 1, first half): one pass over the batches for the token space, one for the conflicts in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from dtme.backward import BackwardPasses
from dtme.blocks import find_blocks
from dtme.branches import branches_beyond
from dtme.capture import Capture, TokenMask, capture
from dtme.cuts import may_be_cut
from dtme.flops import FlopCount, ModelFlops
from dtme.gradients import TaskLosses, checked_losses, token_gradients
from dtme.measurement import Found, Measurement
from dtme.moments import Group, Moments, Seen, moments_of, seen_in, token_spaces
from dtme.parallel import one_model, sharded_modules, unwrapped
from dtme.processes import Processes, Step, patience, processes_of, steps
from dtme.report import ConflictReport
from dtme.undisturbed import undisturbed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Batch = TypeVar("Batch")
Progress = Callable[[Sequence[Any] | Iterable[Any], str], Iterable[Any]]

MOMENT_SAMPLES = 192
"""Samples for the token space when the analysis may stop early; more move the rates by about 0.001."""


def analyze(
    model: nn.Module,
    task_losses: TaskLosses,
    batches: Iterable[Any],
    *,
    blocks: str | Sequence[str | int] | int | None = None,
    variance_ratio: float = 100.0,
    confidence: float | None = None,
    max_samples: int | None = None,
    token_mask: TokenMask | None = None,
    progress: Progress | None = None,
    process_group: ProcessGroup | Literal["alone"] | None = None,
) -> ConflictReport:
    """Measure where the tasks of a model conflict in token space.

    Per batch one forward pass for the token space and, in a second round, one forward pass and one backward pass per
    task, to the tokens only: no gradient of a parameter is computed. The model runs in evaluation mode, and is left,
    with its gradients, modes, buffers and hooks, exactly as it was found, also when the analysis fails.

    A block that runs several times in a pass (a recurrent block, a trunk that reads two sentences one after the other) has
    one set of inserts for all its runs, and is one place: the tokens of its runs count as tokens of the same samples.

    Where torch.distributed is initialised, every process calls `analyze` with its own share of the batches (its
    `DistributedSampler`'s, say) and gets the same report: that of one process which reads the batches of all of them in
    turn, the first of each rank, the second of each rank, and so on; shares may be uneven or empty. An error in one
    process is raised in all. The model may be wrapped in DistributedDataParallel or sharded by `fully_shard` (FSDP2), in
    which case all processes have to read the same tasks at the same step.

    Args:
        model: A multi-task model with a transformer trunk.
        task_losses: `task_losses(model, batch)` gives each task's loss, a scalar; a task that a batch says nothing about
            is left out.
        batches: Any iterable of batches; one that can be read only once is held in memory.
        blocks: Which blocks, as in `find_blocks`; `None` finds them.
        variance_ratio: r, energy in the range space over energy in the null space (Eq. 3).
        confidence: Stop drawing samples as soon as the choice of blocks of the default plan is settled at this level,
            `0.95` for instance; `None` reads all batches. The samples have to come in random order, from a loader that
            shuffles say, because those read have to speak for those left; such a loader gives the two rounds different ones.
            Tasks that never share an input are compared over all batches, and so all are read.
        max_samples: Read no more batches once so many samples have been seen, over all processes.
        token_mask: `token_mask(batch)` tells which tokens are real: `(samples, tokens)`, True or 1 where a token is, over
            all tokens that enter the blocks. Padding counts neither in the token space nor as conflict. `None` takes it
            from the masks that the blocks are called with, as those of transformers and of torch.nn are.
        progress: Wraps each round, `progress(batches, "what it is")`: `rich.progress.track` and `tqdm.tqdm` both fit. Of
            several processes the first shows it.
        process_group: The processes that analyse together: `None` is the default group where torch.distributed is
            initialised, `"alone"` this process and no other, as in `if rank == 0: analyze(..., process_group="alone")`.

    Returns:
        The rates of conflict per block, pair of tasks and space, with their confidence half-widths.

    Raises:
        ValueError: Fewer than two tasks, no batches, a loss that is not finite or does not reach the trunk, or blocks
            that are not found; the message names task, block and batch, and of several processes the rank.
        RuntimeError: Of several processes, another one raised another error; the message holds it and names the rank.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> trunk = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 2, enable_nested_tensor=False)
        >>> heads = nn.ModuleDict({"sum": nn.Linear(8, 1), "mean": nn.Linear(8, 1)})
        >>> model = nn.ModuleDict({"trunk": trunk, "heads": heads})
        >>> def task_losses(model, batch):
        ...     tokens = model["trunk"](batch)
        ...     return {task: head(tokens).square().mean() for task, head in model["heads"].items()}
        >>> report = analyze(model, task_losses, [torch.randn(4, 5, 8)])
        >>> report.tasks, report.blocks, report.samples
        (('sum', 'mean'), ('trunk.layers.0', 'trunk.layers.1'), 4)
    """
    processes = processes_of(process_group)
    trunk = unwrapped(model)
    with patience(processes):
        found = _agreed_blocks(trunk, blocks, (variance_ratio, confidence, max_samples), processes)
    batches = processes.exchange(lambda: (None, _rereadable(batches, max_samples)))[1]
    reading = _Reading(model, task_losses, batches, token_mask, progress, processes, bool(sharded_modules(model)))
    with one_model(model, processes), undisturbed(model):
        count = FlopCount(trunk, found, late=True)
        moments = _moments(reading, found, (confidence, max_samples), count)
        tasks = _checked_tasks(trunk, moments.tasks, (confidence, max_samples))
        spaces = token_spaces(moments, variance_ratio, processes)
        ordered = {name: found[name] for name in spaces}
        measured = Measurement(tasks, tuple(ordered), spaces, confidence, may_stop=moments.all_meet())
        _measure(reading, ordered, measured, max_samples)
        measured.total(processes)
        return replace(measured.report(moments.widths, variance_ratio), flops=_first_counted(count, processes))


@dataclass(frozen=True)
class _Reading:
    """The batches of this process, and what is asked about each of them in either round."""

    model: nn.Module
    task_losses: TaskLosses
    batches: Iterable[Any]
    token_mask: TokenMask | None
    progress: Progress | None
    processes: Processes
    sharded: bool

    def steps(self, what: str) -> Iterator[Step]:
        shown = self.progress if self.processes.rank == 0 else None
        batches = self.batches if shown is None else shown(self.batches, what)
        return steps(self.processes, batches, sharded=self.sharded)

    def counts(self, step: Step) -> bool:
        """Whether the batch of a step is this process's own, and not there to keep others company."""
        return step.reading[self.processes.rank]

    def losses(self, step: Step, caught: Capture, expected: tuple[str, ...] | None) -> dict[str, Tensor]:
        caught.clear()
        if not step.runs:
            return {}
        return checked_losses(self.model, self.task_losses, step.batch, step.number, caught, expected)


def _check_options(variance_ratio: float, confidence: float | None, max_samples: int | None) -> None:
    if not 0 < variance_ratio < float("inf"):
        raise ValueError(f"variance_ratio={variance_ratio}: give a positive number; the paper's values are 1 to 1000.")
    if confidence is not None and not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: give a level between 0 and 1, such as 0.95, or None.")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples={max_samples}: give at least 1, or None for all.")


def _is_enough(moments: Moments, confidence: float | None, max_samples: int | None) -> bool:
    """Whether the first round may end: where tasks come in batches of their own, none of them must be missed."""
    read = sum(moments.samples.values())
    if max_samples is not None and read >= max_samples:
        return True
    return confidence is not None and read >= MOMENT_SAMPLES and len(moments.tasks) > 1 and moments.all_meet()


def _rereadable(batches: Iterable[Batch], max_samples: int | None) -> Iterable[Batch]:
    """Batches that can be read only once are kept, because two rounds need them; a batch has at least one sample."""
    return list(islice(batches, max_samples)) if iter(batches) is batches else batches


def _agreed_blocks(
    trunk: nn.Module,
    blocks: str | Sequence[str | int] | int | None,
    options: tuple[float, float | None, int | None],
    processes: Processes,
) -> dict[str, nn.Module]:
    """The blocks, which all processes have to find alike, for the same analysis."""

    def find() -> tuple[tuple[Any, ...], dict[str, nn.Module]]:
        _check_options(*options)
        found = find_blocks(trunk, blocks)
        return (tuple(found), options), found

    told, found = processes.exchange(find)
    for rank, theirs in enumerate(told):
        if theirs != told[0]:
            raise ValueError(
                f"rank 0 and rank {rank} call analyze differently: {told[0]} and {theirs} (blocks; variance_ratio, confidence, "
                "max_samples). Give all processes the same, or analyse in one alone: process_group='alone'."
            )
    return found


def _moments(
    reading: _Reading,
    blocks: Mapping[str, nn.Module],
    limits: tuple[float | None, int | None],
    count: FlopCount,
) -> Moments:
    """The first round: the second moments of the tokens that enter the blocks, and the tasks met on the way."""
    moments, step = Moments(), None
    with capture(blocks, differentiable=False, token_mask=reading.token_mask) as caught, torch.no_grad():
        for step in reading.steps("token space"):

            def look(step: Step = step) -> tuple[Seen | None, dict[Group, dict[str, Tensor]]]:
                with count.first_pass(caught.aside):
                    losses = reading.losses(step, caught, None)
                if not losses or not reading.counts(step):
                    return None, {}
                if not caught.entries:
                    raise ValueError(
                        f"no block ran while the losses of batch {step.number} were computed: {', '.join(blocks)}. Name the "
                        "trunk's blocks with blocks=, and let the model call them: block(...), not block.forward(...)."
                    )
                seen = seen_in(caught, tuple(losses))
                return seen, moments_of(caught, seen)

            told, own = reading.processes.exchange(look)
            for rank, seen in enumerate(told):
                if seen is None:
                    continue
                moments.count(seen)
                if rank == reading.processes.rank:
                    moments.add(own)
                if _is_enough(moments, *limits):
                    return moments
    if step is None:
        raise ValueError(
            "batches is empty: analyze needs at least one batch. An exhausted iterator? Pass a list or a loader."
        )
    return moments


def _first_counted(count: FlopCount, processes: Processes) -> ModelFlops | str:
    """The FLOPs that the first process with a pass to count has counted."""
    told = processes.exchange(lambda: (count.flops_or_why_not(), None))[0]
    return next((flops for flops in told if isinstance(flops, ModelFlops)), told[0])


def _checked_tasks(trunk: nn.Module, tasks: Sequence[str], limits: tuple[float | None, int | None]) -> tuple[str, ...]:
    named = [
        f"{name}={limit}"
        for name, limit in zip(("confidence", "max_samples"), limits, strict=True)
        if limit is not None
    ]
    cut = f" {' or '.join(named)} may have ended the reading: give batches of all tasks in turn." if named else ""
    if len(tasks) < 2:
        raise ValueError(f"task_losses gave losses for {list(tasks)}: conflicts need at least two tasks.{cut}")
    idle = branches_beyond(trunk, tasks)
    if idle:
        raise ValueError(
            f"task {idle[0]!r} has a branch in the model, but no batch gave a loss for it: task_losses gave {list(tasks)}.{cut}"
        )
    return tuple(tasks)


def _measure(
    reading: _Reading, blocks: Mapping[str, nn.Module], measured: Measurement, max_samples: int | None
) -> None:
    """The second round: the conflicts of the token gradients, until the batches end or enough is known."""
    backward = BackwardPasses(alone=not reading.sharded)
    # What is sharded outside of the blocks is gathered once for a whole way back, not for each segment of it.
    cut = () if reading.sharded else may_be_cut(unwrapped(reading.model), blocks)
    with capture(blocks, differentiable=True, token_mask=reading.token_mask, cut_behind=cut) as caught:
        for step in reading.steps("conflicts"):

            def look(step: Step = step) -> tuple[tuple[str, ...], dict[str, Tensor]]:
                losses = reading.losses(step, caught, measured.tasks)
                idle = [name for name in blocks if losses and name not in caught.entries]
                if idle:
                    raise ValueError(
                        f"block {idle[0]!r} did not run in batch {step.number}. Leave it out: blocks=[the others]."
                    )
                return tuple(losses), losses

            def compare(losses: dict[str, Tensor], step: Step = step) -> tuple[Any, Found | None]:
                if not losses:
                    return None, None
                found = measured.find(token_gradients(losses, caught, step.number, backward), caught)
                return ((found.samples, found.counts), found) if reading.counts(step) else (None, None)

            tasks, losses = reading.processes.exchange(look)
            if reading.sharded:
                _check_alike(tasks, step)
            told, own = reading.processes.exchange(partial(compare, losses))
            del losses
            caught.clear()
            for rank, counts in enumerate(told):
                if counts is None:
                    continue
                measured.count(*counts)
                if rank == reading.processes.rank and own is not None:
                    measured.add(own)
                if measured.settled() or (max_samples is not None and measured.samples >= max_samples):
                    return
            del told, own  # before the next batch takes its place


def _check_alike(tasks: Sequence[tuple[str, ...]], step: Step) -> None:
    """Processes that share a sharded model go back through it together, task by task."""
    for rank, theirs in enumerate(tasks):
        if theirs != tasks[0]:
            raise ValueError(
                f"rank 0 and rank {rank} have losses for {tasks[0]} and {theirs} at step {step.number}, and the model is "
                "sharded: every backward pass runs in all processes or in none. Let all processes read the same tasks, in the "
                "same order, at the same step."
            )
