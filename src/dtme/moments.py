"""The token spaces of all blocks (Eq. 1-3), from second moments summed over batches and processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from dtme._shapes import Float
from dtme.capture import Capture
from dtme.processes import Processes
from dtme.token_space import TokenSpace, second_moment, token_space

Group = tuple[str, ...]
"""Tasks that read the same tokens, in alphabetical order."""


@dataclass(frozen=True)
class Seen:
    """What one batch showed, but for its numbers.

    Attributes:
        tasks: Those it gave a loss for, in the order of the losses.
        widths: Channels p of the tokens of the blocks that ran, in the order in which they ran.
        groups: The tasks, apart where some block's tokens have parted into streams.
        samples: How many samples it held.
    """

    tasks: tuple[str, ...]
    widths: dict[str, int]
    groups: tuple[Group, ...]
    samples: int


@dataclass
class Moments:
    """Second moments by group of tasks and block: sums over this process's batches, samples counted over all processes."""

    tasks: list[str] = field(default_factory=list)
    met: set[frozenset[str]] = field(default_factory=set)
    """Pairs of tasks that were on one batch."""
    widths: dict[str, int] = field(default_factory=dict)
    samples: dict[Group, int] = field(default_factory=dict)
    blocks: dict[Group, set[str]] = field(default_factory=dict)
    sums: dict[Group, dict[str, Float[Tensor, "p p"]]] = field(default_factory=dict)

    def count(self, seen: Seen) -> None:
        """Take note of a batch of any process."""
        self.met.update(map(frozenset, combinations(seen.tasks, 2)))
        self.tasks += [task for task in seen.tasks if task not in self.tasks]
        for name, width in seen.widths.items():
            self.widths.setdefault(name, width)
        for group in seen.groups:
            self.samples[group] = self.samples.get(group, 0) + seen.samples
            self.blocks.setdefault(group, set()).update(seen.widths)

    def all_meet(self) -> bool:
        """Whether each two tasks were on one batch."""
        return all(frozenset(pair) in self.met for pair in combinations(self.tasks, 2))

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
        if all(any({one, other} <= set(group) for group in self.samples) for one in self.tasks for other in self.tasks):
            return dict.fromkeys(having, 1 / sum(self.samples[group] for group in having))
        weights = dict.fromkeys(having, 0.0)
        for task in self.tasks:
            own = [group for group in having if task in group]
            if not own:
                raise ValueError(f"no tokens of task {task!r} entered block {block!r}.")
            for group in own:
                weights[group] += 1 / sum(self.samples[g] for g in own) / len(self.tasks)
        return weights


def seen_in(caught: Capture, tasks: tuple[str, ...]) -> Seen:
    """What a batch showed that gave losses for some tasks."""
    entries = caught.entries
    parted = any(entry.parted() for entry in entries.values())
    widths = {name: entry.tokens.shape[entry.layout.channel] for name, entry in entries.items()}
    groups = tuple((task,) for task in tasks) if parted else (tuple(sorted(tasks)),)
    return Seen(tasks, widths, groups, caught.samples())


def moments_of(caught: Capture, seen: Seen) -> dict[Group, dict[str, Tensor]]:
    """The second moments of a batch."""
    return {
        group: {
            name: second_moment(entry.valid_samples(entry.of_task(group[0]))) for name, entry in caught.entries.items()
        }
        for group in seen.groups
    }


def token_spaces(moments: Moments, variance_ratio: float, processes: Processes) -> dict[str, TokenSpace]:
    """The token space of each block, in the place of its sums; the processes share the work and all get all of them.

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
            return _on(torch.device("cpu"), _checked_space(name, whole[name], variance_ratio)), None

        for name, space in zip(turn, processes.exchange(own)[0], strict=False):
            assert space is not None
            spaces[name] = _on(parts[name].device, space)
    return spaces


def _on(device: torch.device, space: TokenSpace) -> TokenSpace:
    return TokenSpace(space.basis.to(device), space.rank, space.energy.to(device))


def _checked_space(block: str, moment: Float[Tensor, "p p"], variance_ratio: float) -> TokenSpace:
    if not bool(moment.isfinite().all()):
        raise ValueError(f"the tokens that enter block {block!r} are not finite.")
    if float(moment.diagonal().sum()) == 0 or len(moment) < 2:
        raise ValueError(f"the tokens that enter block {block!r} are all zero or of one channel: they span no space.")
    return token_space(moment, variance_ratio)
