"""The analysis (Alg. 1, first half): one pass over the batches for the token space, one for the conflicts in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dtme.blocks import find_blocks, packing_modules
from dtme.branches import branches_beyond
from dtme.capture import Capture, capture
from dtme.gradients import TaskLosses, checked_losses, token_gradients
from dtme.measurement import Measurement
from dtme.report import ConflictReport
from dtme.streams import Streams, stream_of
from dtme.token_space import TokenSpace, second_moment, token_space

Batch = TypeVar("Batch")
Progress = Callable[[Sequence[Any] | Iterable[Any], str], Iterable[Any]]

MOMENT_SAMPLES = 256
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
    progress: Progress | None = None,
) -> ConflictReport:
    """Measure where the tasks of a model conflict in token space.

    Per batch one forward pass for the token space and, in a second round, one forward pass and one backward pass per
    task, to the tokens only: no gradient of a parameter is computed. The model runs in evaluation mode, and is left,
    with its gradients, modes, buffers and hooks, exactly as it was found, also when the analysis fails.

    Args:
        model: A multi-task model with a transformer trunk.
        task_losses: `task_losses(model, batch)` gives each task's loss, a scalar; a task that a batch says nothing about
            is left out.
        batches: Any iterable of batches; one that can be read only once is held in memory.
        blocks: Which blocks, as in `find_blocks`; `None` finds them.
        variance_ratio: r, energy in the range space over energy in the null space (Eq. 3).
        confidence: Stop drawing samples as soon as the choice of blocks of the default plan is settled at this level,
            `0.95` for instance; `None` reads all batches.
        max_samples: Read no more batches once so many samples have been seen.
        progress: Wraps each round, `progress(batches, "what it is")`: `rich.progress.track` and `tqdm.tqdm` both fit.

    Returns:
        The rates of conflict per block, pair of tasks and space, with their confidence half-widths.

    Raises:
        ValueError: Fewer than two tasks, no batches, a loss that is not finite or does not reach the trunk, or blocks
            that are not found; the message names task, block and batch.

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
    _check_options(variance_ratio, confidence, max_samples)
    found = find_blocks(model, blocks)
    if iter(batches) is batches:
        batches = _first_samples(batches, max_samples)
    with _undisturbed(model):
        names, tasks, spaces, widths = _token_spaces(
            model, task_losses, batches, found, variance_ratio, _moment_samples(confidence, max_samples), progress
        )
        ordered = {name: found[name] for name in names}
        measured = Measurement(tasks, tuple(names), spaces, confidence)
        with capture(ordered, differentiable=True) as caught:
            for number, batch in enumerate(_shown(batches, "conflicts", progress)):
                caught.clear()
                losses = checked_losses(model, task_losses, batch, number, caught, tasks)
                if not losses:
                    continue
                idle = [name for name in names if name not in caught.entries]
                if idle:
                    raise ValueError(
                        f"block {idle[0]!r} did not run in batch {number}. Leave it out: blocks=[the others]."
                    )
                measured.add(token_gradients(losses, caught, number), caught)
                del losses
                caught.clear()
                if measured.settled() or (max_samples is not None and measured.samples >= max_samples):
                    break
        return measured.report(widths, variance_ratio)


def _check_options(variance_ratio: float, confidence: float | None, max_samples: int | None) -> None:
    if not 0 < variance_ratio < float("inf"):
        raise ValueError(f"variance_ratio={variance_ratio}: give a positive number; the paper's values are 1 to 1000.")
    if confidence is not None and not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: give a level between 0 and 1, such as 0.95, or None.")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples={max_samples}: give at least 1, or None for all.")


def _moment_samples(confidence: float | None, max_samples: int | None) -> int | None:
    limits = [limit for limit in (max_samples, MOMENT_SAMPLES if confidence is not None else None) if limit is not None]
    return min(limits, default=None)


def _first_samples(batches: Iterable[Batch], max_samples: int | None) -> list[Batch]:
    """Batches that can be read only once, kept because two rounds need them; a batch has at least one sample."""
    return list(islice(batches, max_samples))


def _shown(batches: Iterable[Batch], what: str, progress: Progress | None) -> Iterable[Batch]:
    return batches if progress is None else progress(batches, what)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, tokens as plain tensors and parameters that need no gradient, while the context lasts."""
    modes = [(module, module.training) for module in model.modules()]
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    packing = packing_modules(model).values()
    try:
        model.eval()
        for module in packing:
            module.use_nested_tensor = False
        for parameter, _ in needs:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter, need in needs:
            parameter.requires_grad_(need)
        for module, training in modes:
            module.training = training
        for module in packing:
            module.use_nested_tensor = True


def _token_spaces(
    model: nn.Module,
    task_losses: TaskLosses,
    batches: Iterable[Any],
    blocks: Mapping[str, nn.Module],
    variance_ratio: float,
    max_samples: int | None,
    progress: Progress | None,
) -> tuple[list[str], tuple[str, ...], dict[str, TokenSpace], dict[str, int]]:
    """The token space of each block, tasks weighing the same, and the blocks in the order in which they run."""
    moments: dict[frozenset[str], dict[str, Tensor]] = {}
    samples: dict[frozenset[str], int] = {}
    order: list[str] = []
    tasks: list[str] = []
    number = -1
    with capture(blocks, differentiable=False) as caught, torch.no_grad():
        for number, batch in enumerate(_shown(batches, "token space", progress)):
            caught.clear()
            losses = checked_losses(model, task_losses, batch, number, caught, None)
            if not losses:
                continue
            if not caught.entries:
                raise ValueError(
                    f"no block ran while the losses of batch {number} were computed: {', '.join(blocks)}. Name the trunk's "
                    "blocks with blocks=."
                )
            tasks += [task for task in losses if task not in tasks]
            order += [name for name in caught.entries if name not in order]
            for group in _stream_groups(caught, tuple(losses)):
                sums = moments.setdefault(group, {})
                for name, entry in caught.entries.items():
                    moment = second_moment(entry.valid_samples(stream_of(entry.tokens, next(iter(group)))))
                    sums[name] = sums[name] + moment if name in sums else moment
                samples[group] = samples.get(group, 0) + caught.samples()
            caught.clear()
            if max_samples is not None and sum(samples.values()) >= max_samples:
                break
    if number < 0:
        raise ValueError(
            "batches is empty: analyze needs at least one batch. An exhausted iterator? Pass a list or a loader."
        )
    if len(tasks) < 2:
        raise ValueError(f"task_losses gave losses for {tasks}: conflicts need at least two tasks.")
    idle = branches_beyond(model, tasks)
    if idle:
        raise ValueError(
            f"task {idle[0]!r} has a branch in the model, but no batch gave a loss for it: task_losses gave {tasks}."
        )
    spaces, widths = {}, {}
    for name in order:
        pooled = _pooled_moment(name, tasks, moments, samples)
        if not bool(pooled.isfinite().all()):
            raise ValueError(f"the tokens that enter block {name!r} are not finite.")
        if float(pooled.diagonal().sum()) == 0 or len(pooled) < 2:
            raise ValueError(
                f"the tokens that enter block {name!r} are all zero or of one channel: they span no space."
            )
        spaces[name], widths[name] = token_space(pooled, variance_ratio), len(pooled)
    return order, tuple(tasks), spaces, widths


def _stream_groups(caught: Capture, tasks: tuple[str, ...]) -> list[frozenset[str]]:
    """The tasks of a batch, apart where some block's tokens have parted into streams."""
    parted = any(isinstance(entry.tokens, Streams) for entry in caught.entries.values())
    return [frozenset([task]) for task in tasks] if parted else [frozenset(tasks)]


def _pooled_moment(
    block: str,
    tasks: Sequence[str],
    moments: Mapping[frozenset[str], dict[str, Tensor]],
    samples: Mapping[frozenset[str], int],
) -> Tensor:
    """The second moment over all samples; over the tasks' own means, weighing the same, where some never share an input."""

    def mean(groups: Sequence[frozenset[str]], whose: str) -> Tensor:
        own = [group for group in groups if block in moments[group]]
        if not own:
            raise ValueError(f"no tokens of {whose} entered block {block!r}.")
        return sum((moments[group][block] for group in own[1:]), moments[own[0]][block]) / sum(samples[g] for g in own)

    if all(any({one, other} <= group for group in moments) for one in tasks for other in tasks):
        return mean(list(moments), "any task")
    means = [mean([group for group in moments if task in group], f"task {task!r}") for task in tasks]
    return torch.stack(means).mean(0)
