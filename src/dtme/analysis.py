"""The analysis (Alg. 1, first half): one pass over the batches for the token space, one for the conflicts in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from dtme.blocks import find_blocks, packing_modules
from dtme.branches import branches_beyond
from dtme.capture import Capture, Entry, capture
from dtme.conflict import token_conflicts
from dtme.rates import BlockScores, RateSums, Reservoir, disjoint_rate, normal_quantile
from dtme.report import ConflictReport
from dtme.streams import Streams, stream_of
from dtme.token_space import TokenSpace, second_moment, token_space

TaskLosses = Callable[[nn.Module, Any], Mapping[str, Tensor]]
Batch = TypeVar("Batch")
Progress = Callable[[Sequence[Any] | Iterable[Any], str], Iterable[Any]]

MOMENT_SAMPLES = 256
"""Samples for the token space when the analysis may stop early; more move the rates by about 0.001."""

DISJOINT_SAMPLES = 512
"""Samples kept per task to compare tasks that never share an input."""


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
        measured = _Measurement(tasks, tuple(names), spaces, confidence)
        with capture(ordered, differentiable=True) as caught:
            for number, batch in enumerate(_shown(batches, "conflicts", progress)):
                caught.clear()
                losses = _losses(model, task_losses, batch, number, caught, tasks)
                if not losses:
                    continue
                idle = [name for name in names if name not in caught.entries]
                if idle:
                    raise ValueError(
                        f"block {idle[0]!r} did not run in batch {number}. Leave it out: blocks=[the others]."
                    )
                measured.add(_token_gradients(losses, caught, number), caught)
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
            losses = _losses(model, task_losses, batch, number, caught, None)
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
                    moment = second_moment(_valid_samples(entry, next(iter(group))))
                    sums[name] = sums[name] + moment if name in sums else moment
                samples[group] = samples.get(group, 0) + _samples_in(caught)
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


def _losses(
    model: nn.Module,
    task_losses: TaskLosses,
    batch: Any,
    number: int,
    caught: Capture,
    expected: tuple[str, ...] | None,
) -> dict[str, Tensor]:
    """The losses of a batch, checked."""
    losses = dict(task_losses(model, batch))
    for task, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"task_losses: the loss of task {task!r} is no scalar tensor but {shape}. Reduce it, .mean() say."
            )
        if not bool(loss.isfinite()):
            raise ValueError(
                f"the loss of task {task!r} is {loss.item()} in batch {number}; {_first_not_finite(caught)}. "
                "Analyse a model whose losses are finite."
            )
        if expected is not None and task not in expected:
            raise ValueError(
                f"task_losses gave task {task!r} in batch {number} of the second round, unknown in the first: {expected}."
            )
    return losses


def _first_not_finite(caught: Capture) -> str:
    for name, entry in caught.entries.items():
        if not entry.finite():
            return f"the first tokens that are not finite enter block {name!r}"
    last = next(reversed(caught.entries), "none")
    return f"all tokens that enter the blocks are finite (the last is {last!r}), so the fault lies behind them"


def _token_gradients(losses: Mapping[str, Tensor], caught: Capture, number: int) -> dict[str, dict[str, Tensor]]:
    """Per task and block the gradient of the task's loss by the tokens its stream brings there."""
    gradients: dict[str, dict[str, Tensor]] = {}
    for place, (task, loss) in enumerate(losses.items()):
        inputs = [stream_of(entry.tokens, task) for entry in caught.entries.values()]
        found: tuple[Tensor | None, ...] = (None,) * len(inputs)
        if loss.requires_grad:
            last = place + 1 == len(losses)
            found = torch.autograd.grad(loss, inputs, retain_graph=not last, allow_unused=True)
        if all(gradient is None for gradient in found):
            raise ValueError(
                f"the loss of task {task!r} does not reach the trunk: no token that enters {', '.join(caught.entries)} moves it. "
                "Is the trunk's output detached, or the loss computed under no_grad?"
            )
        gradients[task] = {}
        for (name, entry), gradient, tokens in zip(caught.entries.items(), found, inputs, strict=True):
            whole = torch.zeros_like(tokens) if gradient is None else gradient
            if not bool(whole.isfinite().all()):
                raise ValueError(
                    f"the gradient of task {task!r} by the tokens entering block {name!r} is not finite in batch {number}."
                )
            gradients[task][name] = _masked(entry.layout.samples_first(whole), entry)
    return gradients


def _valid_samples(entry: Entry, task: str) -> Float[Tensor, "samples tokens p"]:
    return _masked(entry.layout.samples_first(stream_of(entry.tokens, task)), entry)


def _masked(tokens: Float[Tensor, "samples tokens p"], entry: Entry) -> Float[Tensor, "samples tokens p"]:
    return tokens if entry.valid is None else tokens * entry.valid.unsqueeze(-1).to(tokens.dtype)


def _samples_in(caught: Capture) -> int:
    entry = next(iter(caught.entries.values()))
    return entry.tokens.shape[entry.layout.batch]


class _Measurement:
    """Everything the second round sums up."""

    def __init__(
        self,
        tasks: tuple[str, ...],
        blocks: tuple[str, ...],
        spaces: Mapping[str, TokenSpace],
        confidence: float | None,
    ) -> None:
        self.tasks, self.blocks, self.spaces, self.confidence = tasks, blocks, spaces, confidence
        self.samples = 0
        self.rates = {name: RateSums(len(tasks)) for name in blocks}
        self.scores = [BlockScores(len(blocks)), BlockScores(len(blocks))]
        self.apart: dict[str, dict[str, Reservoir]] = {
            task: {name: Reservoir(DISJOINT_SAMPLES) for name in blocks} for task in tasks
        }
        self.generator = torch.Generator().manual_seed(0)

    def add(self, gradients: Mapping[str, Mapping[str, Tensor]], caught: Capture) -> None:
        """Add the token gradients of one batch."""
        present = [place for place, task in enumerate(self.tasks) if task in gradients]
        per_block = []
        for name in self.blocks:
            entry = caught.entries[name]
            stacked = torch.stack([gradients[self.tasks[place]][name] for place in present], dim=2)
            valid = torch.full((len(stacked),), stacked.shape[1]) if entry.valid is None else entry.valid.sum(1)
            conflicts = token_conflicts(stacked, self.spaces[name])
            self.rates[name].add(conflicts, present, valid)
            counted = conflicts.counted.to(torch.float64)
            shares = torch.stack([conflicts.in_range, conflicts.in_null]) / counted
            per_block.append(shares.flatten(2).nanmean(2))
        for space, scores in enumerate(self.scores):
            scores.add(torch.stack([shares[space] for shares in per_block], 1))
        self.samples += _samples_in(caught)
        self._keep_sums(gradients)

    def _keep_sums(self, gradients: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep what pairs of tasks need that never share an input, as long as there are such pairs."""
        counted = self.rates[self.blocks[0]].counted
        shared = counted + torch.eye(len(self.tasks), dtype=torch.float64) > 0
        for place, task in enumerate(self.tasks):
            if bool(shared[place].all()):
                self.apart[task] = {}
            elif task in gradients:
                for name, reservoir in self.apart[task].items():
                    sums = gradients[task][name].sum(1)
                    reservoir.add(sums[sums.abs().amax(1) > 0], self.generator)

    def settled(self) -> bool:
        """Whether the blocks of the default plan are settled at the wanted confidence."""
        return self.confidence is not None and not self._undecided()

    def _undecided(self) -> tuple[str, ...]:
        assert self.confidence is not None
        half = max(1, (len(self.blocks) + 1) // 2)
        open_ = [scores.undecided(half, 1 - (1 - self.confidence) / 2) for scores in self.scores]
        return tuple(name for place, name in enumerate(self.blocks) if bool(open_[0][place] | open_[1][place]))

    def report(self, widths: Mapping[str, int], variance_ratio: float) -> ConflictReport:
        """The report of what was measured."""
        level = self.confidence or 0.95
        quantile = normal_quantile(level)
        rates = torch.stack([self.rates[name].rates() for name in self.blocks])
        errors = torch.stack([self.rates[name].errors() for name in self.blocks])
        pairing = [["shared" if i != j else "" for j in range(len(self.tasks))] for i in range(len(self.tasks))]
        for i, first in enumerate(self.tasks):
            for j, second in enumerate(self.tasks[:i]):
                if float(self.rates[self.blocks[0]].counted[i, j]) > 0:
                    continue
                pairing[i][j] = pairing[j][i] = "disjoint"
                for place, name in enumerate(self.blocks):
                    rate, error = self._disjoint(first, second, name)
                    rates[place, :, i, j] = rates[place, :, j, i] = rate
                    errors[place, :, i, j] = errors[place, :, j, i] = error
        return ConflictReport(
            tasks=self.tasks,
            blocks=self.blocks,
            widths=tuple(widths[name] for name in self.blocks),
            range_rank=tuple(self.spaces[name].rank for name in self.blocks),
            range_rate=rates[:, 0],
            null_rate=rates[:, 1],
            range_halfwidth=quantile * errors[:, 0],
            null_halfwidth=quantile * errors[:, 1],
            samples=self.samples,
            pairing=tuple(tuple(row) for row in pairing),
            zero_share=tuple(self.rates[name].zero_share() for name in self.blocks),
            variance_ratio=variance_ratio,
            level=level,
            undecided=() if self.confidence is None else self._undecided(),
        )

    def _disjoint(self, first: str, second: str, block: str) -> tuple[Tensor, Tensor]:
        rows = [self.apart[task][block].rows() for task in (first, second)]
        if rows[0] is None or rows[1] is None:
            missing = first if rows[0] is None else second
            raise ValueError(
                f"task {missing!r} gave no gradient that is not zero at block {block!r}: nothing to compare it by."
            )
        return disjoint_rate(rows[0], rows[1], self.spaces[block])
