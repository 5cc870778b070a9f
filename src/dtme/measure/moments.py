"""The token spaces of all blocks (Eq. 1-3), from second moments summed over batches and processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from dtme._wrappers import unwrapped
from dtme.distributed.processes import Processes
from dtme.measure.batches import SAMPLES, Reading, Step
from dtme.measure.capture import Capture, capture
from dtme.measure.token_space import TokenSpace, second_moment, token_space

Group = tuple[str, ...]
"""Tasks that read the same tokens, in alphabetical order."""


@dataclass(frozen=True)
class Seen:
    """What one batch showed, but for its numbers.

    Attributes:
        tasks: Those it gave a loss for, in the order of the losses.
        widths: Channels p of the tokens of the blocks that ran, in the order in which they ran.
        dtypes: Of these tokens.
        groups: The tasks, apart where some block's tokens have parted into streams.
        samples: How many samples it held.
    """

    tasks: tuple[str, ...]
    widths: dict[str, int]
    dtypes: dict[str, torch.dtype]
    groups: tuple[Group, ...]
    samples: int


@dataclass
class Moments:
    """Second moments by group of tasks and block: sums over this process's batches, samples counted over all processes."""

    read: dict[str, int] = field(default_factory=dict)
    """Samples of each task, in the order in which the tasks came."""
    total: int = 0
    """Samples of all batches."""
    ended: bool = False
    """Whether reading ended before the batches did."""
    met: set[frozenset[str]] = field(default_factory=set)
    """Pairs of tasks that were on one batch."""
    widths: dict[str, int] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    samples: dict[Group, int] = field(default_factory=dict)
    blocks: dict[Group, set[str]] = field(default_factory=dict)
    sums: dict[Group, dict[str, Float[Tensor, "p p"]]] = field(default_factory=dict)

    def count(self, seen: Seen) -> None:
        """Take note of a batch of any process."""
        self.met.update(map(frozenset, combinations(seen.tasks, 2)))
        self.total += seen.samples
        for task in seen.tasks:
            self.read[task] = self.read.get(task, 0) + seen.samples
        for name, width in seen.widths.items():
            self.widths.setdefault(name, width)
            self.dtypes.setdefault(name, seen.dtypes[name])
        for group in seen.groups:
            self.samples[group] = self.samples.get(group, 0) + seen.samples
            self.blocks.setdefault(group, set()).update(seen.widths)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those met, in the order in which they came."""
        return tuple(self.read)

    def all_meet(self) -> bool:
        """Whether each two tasks were on one batch."""
        return all(frozenset(pair) in self.met for pair in combinations(self.read, 2))

    def add(self, moments: dict[Group, dict[str, Tensor]]) -> None:
        """Add the moments of a batch of this process."""
        for group, own in moments.items():
            sums = self.sums.setdefault(group, {})
            for name, moment in own.items():
                sums[name] = sums[name] + moment if name in sums else moment

    def pooled(self, block: str) -> Float[Tensor, "p p"]:
        """This process's part of a block's second moment; the parts of all processes add up to it.

        That is the mean over all samples; over the tasks' own means, weighing the same, where some never share an input.
        """
        weights = self._weights(block)
        parts = [
            weight * self.sums[group][block] for group, weight in weights.items() if block in self.sums.get(group, ())
        ]
        width = self.widths[block]
        return torch.stack(parts).sum(0) if parts else torch.zeros(width, width, dtype=torch.float64)

    def forget(self, block: str) -> None:
        """Let go of a block's sums."""
        for own in self.sums.values():
            own.pop(block, None)

    def _weights(self, block: str) -> dict[Group, float]:
        """What the sum of each group counts in a block's second moment."""
        having = [group for group in self.samples if block in self.blocks[group]]
        if all(any({one, other} <= set(group) for group in self.samples) for one in self.read for other in self.read):
            return dict.fromkeys(having, 1 / sum(self.samples[group] for group in having))
        weights = dict.fromkeys(having, 0.0)
        for task in self.read:
            own = [group for group in having if task in group]
            if not own:
                raise ValueError(f"no tokens of task {task!r} entered block {block!r}.")
            for group in own:
                weights[group] += 1 / sum(self.samples[g] for g in own) / len(self.read)
        return weights


def look_at(caught: Capture, tasks: tuple[str, ...]) -> Seen:
    """What a batch showed that gave losses for some tasks."""
    entries = caught.entries
    parted = any(entry.parted() for entry in entries.values())
    widths = {name: entry.tokens.shape[entry.layout.channel] for name, entry in entries.items()}
    dtypes = {name: entry.tokens.dtype for name, entry in entries.items()}
    groups = tuple((task,) for task in tasks) if parted else (tuple(sorted(tasks)),)
    return Seen(tasks, widths, dtypes, groups, caught.samples())


def compute_moments(caught: Capture, seen: Seen) -> dict[Group, dict[str, Tensor]]:
    """The second moments of a batch."""
    return {
        group: {
            name: second_moment(entry.valid_samples(entry.of_task(group[0]))) for name, entry in caught.entries.items()
        }
        for group in seen.groups
    }


def sum_moments(reading: Reading, blocks: Mapping[str, nn.Module]) -> tuple[Moments, int]:
    """The first round: second moments of the tokens that enter the blocks, the tasks met, and how many batches were skipped."""
    moments, trunk, steps = Moments(), unwrapped(reading.model), reading.steps("token space")
    with capture(blocks, differentiable=False, token_mask=reading.token_mask) as caught, torch.no_grad():
        for step in steps:

            def look(step: Step = step) -> tuple[Seen | None, dict[Group, dict[str, Tensor]]]:
                losses = reading.losses(step, caught, None)
                if not losses or not reading.counts(step):
                    return None, {}
                if not caught.entries:
                    raise ValueError(
                        f"no block ran while the losses of batch {step.number} were computed: {', '.join(blocks)}. Name the "
                        "trunk's blocks with blocks=, and let the model call them: block(...), not block.forward(...)."
                    )
                seen = look_at(caught, tuple(losses))
                return seen, compute_moments(caught, seen)

            told, own = reading.processes.exchange(look)
            for rank, seen in enumerate(told):
                if seen is None:
                    continue
                moments.count(seen)
                if rank == reading.processes.rank:
                    moments.add(own)
                if reading.limits.end_first_round(
                    moments.read,
                    moments.total,
                    all_meet=moments.all_meet(),
                    at_least=reading.choice.wait_for(trunk, moments.tasks, SAMPLES),
                ):
                    moments.ended = True
                    return moments, steps.skipped
    return moments, steps.skipped


def find_token_spaces(moments: Moments, variance_ratio: float, processes: Processes) -> dict[str, TokenSpace]:
    """The token space of each block, in the place of its sums; the processes share the work and all get all of them.

    Eigenvectors are taken in float64 and kept as gradients are projected on them, in the type of the tokens and no less than
    float32: beside a small batch the bases of all blocks are not little.

    Raises:
        ValueError: The tokens of a block are not finite, or span no space.
    """
    names = list(moments.widths)
    spaces: dict[str, TokenSpace] = {}
    for first in range(0, len(names), processes.size):
        turn = names[first : first + processes.size]
        parts = {name: moments.pooled(name) for name in turn}
        whole = {name: processes.total_at(rank, part) for rank, (name, part) in enumerate(parts.items())}
        for name in turn:
            moments.forget(name)  # the basis takes its place

        def own(turn: list[str] = turn, whole: dict[str, Tensor] = whole) -> tuple[TokenSpace | None, None]:
            if processes.rank >= len(turn):
                return None, None
            name = turn[processes.rank]
            space = _checked_space(name, whole[name], variance_ratio)
            dtype = torch.promote_types(moments.dtypes[name], torch.float32)
            return _moved(space, torch.device("cpu"), dtype), None

        for name, space in zip(turn, processes.exchange(own)[0], strict=False):
            assert space is not None
            spaces[name] = _moved(space, parts[name].device, space.basis.dtype)
    return spaces


def _moved(space: TokenSpace, device: torch.device, dtype: torch.dtype) -> TokenSpace:
    return TokenSpace(space.basis.to(device, dtype), space.rank, space.energy.to(device))


def _checked_space(block: str, moment: Float[Tensor, "p p"], variance_ratio: float) -> TokenSpace:
    if not bool(moment.isfinite().all()):
        raise ValueError(f"the tokens that enter block {block!r} are not finite.")
    if float(moment.diagonal().sum()) == 0 or len(moment) < 2:
        raise ValueError(f"the tokens that enter block {block!r} are all zero or of one channel: they span no space.")
    return token_space(moment, variance_ratio)
