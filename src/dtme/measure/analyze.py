"""The analysis (Alg. 1, first half): one pass over the batches for the token space, one for the conflicts in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from dtme._arguments import check_arguments
from dtme._wrappers import unwrapped
from dtme.distributed.processes import Processes, processes_of
from dtme.distributed.wrappers import one_model, sharded_modules
from dtme.measure.accumulator import Accumulator, BatchCounts
from dtme.measure.batches import Limits, Progress, Reading, Step, check_alike, rereadable
from dtme.measure.capture import TokenMask, capture
from dtme.measure.eval_mode import eval_mode
from dtme.measure.flops import count_first_batch
from dtme.measure.gradients import LossScales, catch_outputs, check_branches, compute_token_gradients
from dtme.measure.losses import TaskChoice, TaskLosses, refuse_sums
from dtme.measure.moments import find_token_spaces, sum_moments
from dtme.report.notes import describe_chance, describe_zeros
from dtme.report.report import ConflictReport
from dtme.trunk.blocks import find_blocks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def analyze(
    model: nn.Module,
    task_losses: TaskLosses,
    batches: Iterable[Any],
    *,
    blocks: str | Sequence[str | int] | int | None = None,
    tasks: Sequence[str] | None = None,
    branches: Mapping[str, nn.Module | str] | None = None,
    variance_ratio: float = 100.0,
    confidence: float | None = None,
    max_samples: int | Literal["auto"] | None = "auto",
    token_mask: TokenMask | None = None,
    progress: Progress | None = None,
    process_group: ProcessGroup | Literal["alone"] | None = None,
) -> ConflictReport:
    """Measure where the tasks of a model conflict in token space.

    Per batch one forward pass for the token space and, in a second round, one forward pass and one backward pass per
    task, to the tokens only: no gradient of a parameter is computed. One more pass over the first batch counts FLOPs, which a
    plan on a budget needs. The model runs in evaluation mode, and is left, with its gradients, modes, buffers and hooks,
    exactly as it was found, also when the analysis fails.

    By default no more is read than is needed: 192 samples for the token space, then up to 512 for the conflicts, fewer where
    the choice of blocks of the default plan is settled before. The samples have to come in random order, from a loader that
    shuffles say, because those read have to speak for those left; such a loader gives the two rounds different ones. The
    report says how many were read and what they leave open. `max_samples=None` reads all, twice.

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
        batches: Any iterable of batches; of one that can be read only once, what the first round reads is held in memory.
            Batches without samples are skipped.
        blocks: Which blocks, as in `find_blocks`; `None` finds them.
        tasks: The losses to analyse, in the order of the report; others are left out. `None` takes all, unless one is but the
            sum of the others, which is an error. A key of a `ModuleDict` that no loss is given for is no task.
        branches: Where each task leaves the trunk, as `apply` takes it: task to module or module name. `None` looks for a
            `ModuleDict` whose keys are the tasks. Here it only tells which losses are tasks, and whether two are swapped.
        variance_ratio: r, energy in the range space over energy in the null space (Eq. 3).
        confidence: Read until the choice of blocks of the default plan is settled at this level, `0.95` for instance, and no
            further. Tasks that never share an input are compared over all batches, and so all are read.
        max_samples: Read no more batches once so many samples have been seen, over all processes; `None` reads all. `"auto"`
            is up to 512, or until `confidence=0.95` is reached; of tasks that share no inputs, up to 512 of each task; with a
            `confidence` of your own, as many as that takes.
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
        ValueError: Fewer than two tasks, no batches, a loss that is not finite or does not reach the trunk, a task without any
            gradient, or blocks that are not found; the message names task, block and batch, and of several processes the rank.
        ArgumentTypeError: A ValueError, and a TypeError: an argument, or what `task_losses` returns, is of another kind.
        RuntimeError: Of several processes, another one raised another error; the message holds it and names the rank.

    Example:
        >>> import torch
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

    def check() -> tuple[Limits, TaskChoice]:
        check_arguments(model, task_losses, batches)
        if not 0 < variance_ratio < float("inf"):
            raise ValueError(
                f"variance_ratio={variance_ratio}: give a positive number; the paper's values are 1 to 1000."
            )
        return Limits.of(confidence, max_samples), TaskChoice.of(tasks, branches)

    found, (limits, choice) = _agree(trunk, blocks, check, (variance_ratio, confidence, max_samples), processes)
    batches = processes.exchange(lambda: (None, rereadable(batches)))[1]
    sharded = bool(sharded_modules(model))
    reading = Reading(model, task_losses, batches, token_mask, progress, processes, sharded, limits, choice)
    logging.getLogger("dtme").info("analyze reads batches twice, up to %s", limits)
    with one_model(model, processes), eval_mode(model):
        moments, skipped = sum_moments(reading, found)
        met, notes = choice.settle(trunk, moments.tasks, _cut(limits) if moments.ended else "")
        spaces = find_token_spaces(moments, variance_ratio, processes)
        ordered = {name: found[name] for name in spaces}
        measured = Accumulator(met, tuple(ordered), spaces, limits.confidence, may_stop=moments.all_meet())
        why = _compare_gradients(reading, ordered, measured)
        measured.total(processes)
        measured.check_gradients()
        report = measured.report(moments.widths, variance_ratio)
        report = replace(report, flops=count_first_batch(reading, trunk, report.blocks))
    notes = [limits.describe_end(moments.total, measured.samples, why, skipped), *notes, *measured.describe_choice()]
    return replace(report, notes=(*notes, *describe_chance(report), *describe_zeros(report)))


def _cut(limits: Limits) -> str:
    return f" {limits} may have ended the reading: give batches of all tasks in turn, or max_samples=None."


def _agree(
    trunk: nn.Module,
    blocks: str | Sequence[str | int] | int | None,
    check: Callable[[], tuple[Limits, TaskChoice]],
    options: tuple[Any, ...],
    processes: Processes,
) -> tuple[dict[str, nn.Module], tuple[Limits, TaskChoice]]:
    """The blocks, limits and tasks, which all processes have to give alike, for the same analysis."""

    def find() -> tuple[tuple[Any, ...], tuple[dict[str, nn.Module], tuple[Limits, TaskChoice]]]:
        limits, choice = check()
        found = find_blocks(trunk, blocks)
        return (tuple(found), (*options, choice.tasks)), (found, (limits, choice))

    told, own = processes.exchange(find)
    for rank, theirs in enumerate(told):
        if theirs != told[0]:
            raise ValueError(
                f"rank 0 and rank {rank} call analyze differently: {told[0]} and {theirs} (blocks; variance_ratio, confidence, "
                "max_samples, tasks). Give all processes the same, or analyse in one alone: process_group='alone'."
            )
    return own


def _compare_gradients(reading: Reading, blocks: Mapping[str, nn.Module], measured: Accumulator) -> str:
    """The second round: the conflicts of the token gradients, until the batches end or enough is known; tells which."""
    trunk, processes = unwrapped(reading.model), reading.processes
    scales = LossScales(agree=processes.all_agree) if reading.sharded else LossScales()
    suspects = reading.choice.suspects(trunk, measured.tasks)
    all_meet = measured.may_stop
    with (
        capture(blocks, differentiable=True, token_mask=reading.token_mask) as caught,
        catch_outputs(reading.choice.modules(trunk)) as outputs,
    ):
        for step in reading.steps("conflicts"):

            def look(step: Step = step) -> tuple[tuple[str, ...], dict[str, Tensor]]:
                losses = reading.losses(step, caught, measured.tasks)
                idle = [name for name in blocks if losses and name not in caught.entries]
                if idle:
                    raise ValueError(
                        f"block {idle[0]!r} did not run in batch {step.number}. Leave it out: blocks=[the others]."
                    )
                check_branches(losses, outputs)
                return tuple(losses), losses

            def compare(losses: dict[str, Tensor], step: Step = step) -> tuple[Any, BatchCounts | None]:
                if not losses:
                    return None, None
                gradients = compute_token_gradients(losses, caught, step.number, scales)
                found = measured.find(refuse_sums(gradients, suspects) if suspects else gradients, caught)
                told = (found.samples, found.counts, found.present)
                return (told, found) if reading.counts(step) else (None, None)

            tasks, losses = processes.exchange(look)
            if reading.sharded:
                check_alike(tasks, step)
            told, own = processes.exchange(partial(compare, losses))
            del losses
            caught.clear()
            for rank, counts in enumerate(told):
                if counts is None:
                    continue
                measured.count(*counts)
                if rank == processes.rank and own is not None:
                    measured.add(own)
                if measured.settled():
                    return "settled"
                if reading.limits.end_second_round(measured.read, measured.samples, all_meet=all_meet):
                    return "enough"
            del told, own  # before the next batch takes its place
    return "all"
