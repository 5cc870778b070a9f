"""What the second round of an analysis sums up, and the report it ends in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtme._shapes import Float, Int
from dtme.distributed.processes import Processes
from dtme.measure.batches import LEVEL
from dtme.measure.capture import Capture
from dtme.measure.conflict import Conflicts, compare
from dtme.measure.rates import RateSums, disjoint_rate, normal_quantile
from dtme.measure.reservoir import Reservoir
from dtme.measure.stopping import BlockScores
from dtme.measure.token_space import TokenSpace
from dtme.plan.placement import share_of
from dtme.plan.rates import SPECTRUM
from dtme.report.notes import describe_choice
from dtme.report.report import ConflictReport

DISJOINT_SAMPLES = 512
"""Samples kept per task to compare tasks that never share an input."""


@dataclass(frozen=True)
class BatchCounts:
    """What one batch says about the conflicts of the tasks it has losses for.

    Attributes:
        samples: How many samples it holds.
        counts: Per sample, block and pair of tasks, how many tokens were compared, and of these how many conflict in the range
            and in the null space; 0 for pairs of tasks that are not present.
        present: The tasks, as places among all tasks.
        conflicts: Per block, what was counted.
        chance: Per block, what was counted between the gradients of different samples, at the same places.
        valid: Per block and sample, how many tokens are no padding.
        energy: Per block and task present, the gradients' squared norms summed over samples and tokens.
        sums: Per task that may have to be compared on inputs of its own and block, the gradients summed over the tokens.
    """

    samples: int
    counts: Int[Tensor, "3 samples blocks pairs"]
    present: list[int]
    conflicts: dict[str, Conflicts]
    chance: dict[str, Conflicts]
    valid: dict[str, Int[Tensor, " samples"]]
    energy: dict[str, Float[Tensor, " present"]]
    sums: dict[str, dict[str, Float[Tensor, "samples p"]]]


class Accumulator:
    """Everything the second round sums up: `count` over all processes, `add` over this one's batches until `total`."""

    def __init__(
        self,
        tasks: tuple[str, ...],
        blocks: tuple[str, ...],
        spaces: Mapping[str, TokenSpace],
        confidence: float | None,
        may_stop: bool = True,
    ) -> None:
        self.tasks, self.blocks, self.spaces, self.confidence = tasks, blocks, spaces, confidence
        self.may_stop = may_stop
        self.samples = 0
        self.read = dict.fromkeys(tasks, 0)
        self.rates = {name: RateSums(len(tasks)) for name in blocks}
        self.chance = {name: RateSums(len(tasks)) for name in blocks}
        self.energy = {name: torch.zeros(len(tasks), dtype=torch.float64) for name in blocks}
        pairs = len(tasks) * (len(tasks) - 1) // 2
        self.scores = [BlockScores(len(blocks), pairs) for _ in range(2)]
        self.apart: dict[str, dict[str, Reservoir]] = {
            task: {name: Reservoir(DISJOINT_SAMPLES) for name in blocks} for task in tasks
        }

    def find(self, gradients: Iterable[tuple[str, Mapping[str, Tensor]]], caught: Capture) -> BatchCounts:
        """What the token gradients of one batch say, block by block as they come; nothing is added yet."""
        present: list[int] = []
        conflicts, chance, valid, energy = {}, {}, {}, {}
        sums: dict[str, dict[str, Tensor]] = {}
        for name, of_tasks in gradients:
            entry = caught.entries[name]
            present = [place for place, task in enumerate(self.tasks) if task in of_tasks]
            for place in present:
                if name in self.apart[self.tasks[place]]:
                    sums.setdefault(self.tasks[place], {})[name] = of_tasks[self.tasks[place]].sum(1)
            own = [of_tasks[self.tasks[place]] for place in present]
            valid[name] = torch.full((len(own[0]),), own[0].shape[1]) if entry.valid is None else entry.valid.sum(1)
            found = compare(own, self.spaces[name])
            conflicts[name], chance[name], energy[name] = found.conflicts, found.chance, found.energy.cpu()
        _check_same_samples({name: conflicts[name] for name in self.blocks})
        counts = torch.stack([self._of_pairs(conflicts[name], present) for name in self.blocks], 2)
        return BatchCounts(caught.samples(), counts, present, conflicts, chance, valid, energy, sums)

    def _of_pairs(self, conflicts: Conflicts, present: list[int]) -> Int[Tensor, "3 samples pairs"]:
        """What was counted in one block, each pair of all the tasks once."""
        found = torch.stack([conflicts.counted, conflicts.in_range, conflicts.in_null]).cpu()
        whole = found.new_zeros(*found.shape[:2], len(self.tasks), len(self.tasks))
        rows = torch.tensor(present)
        whole[:, :, rows.unsqueeze(1), rows] = found
        first, second = torch.triu_indices(len(self.tasks), len(self.tasks), 1)
        return whole[:, :, first, second]

    def count(
        self, samples: int, counts: Int[Tensor, "3 samples blocks pairs"], present: Sequence[int] | None = None
    ) -> None:
        """Take note of a batch of any process: what tells when to stop.

        Args:
            samples: How many it holds.
            counts: What was counted in it.
            present: Places of the tasks that it has losses for; by default all of them.
        """
        self.samples += samples
        for place in range(len(self.tasks)) if present is None else present:
            self.read[self.tasks[place]] += samples
        counted, *conflicting = counts
        for own, in_space in zip(self.scores, conflicting, strict=True):
            own.add(in_space, counted)

    def add(self, found: BatchCounts) -> None:
        """Add what a batch of this process says."""
        for name in self.blocks:
            self.rates[name].add(found.conflicts[name], found.present, found.valid[name])
            self.chance[name].add(found.chance[name], found.present, found.valid[name])
            self.energy[name][found.present] += found.energy[name]
        self._keep_sums(found)

    def _keep_sums(self, found: BatchCounts) -> None:
        """Keep what pairs of tasks need that never share an input, as long as there are such pairs."""
        for task, shared in zip(self.tasks, self._shared(), strict=True):
            if all(shared):
                self.apart[task] = {}
            elif task in found.sums:
                for name, reservoir in self.apart[task].items():
                    sums = found.sums[task][name]
                    reservoir.add(sums[sums.abs().amax(1) > 0])

    def _shared(self) -> list[list[bool]]:
        """Whether each two tasks have been compared on the same inputs."""
        counted = self.rates[self.blocks[0]].counted
        return (counted + torch.eye(len(self.tasks), dtype=torch.float64) > 0).tolist()

    def total(self, processes: Processes) -> None:
        """Add up what all processes have found, in each of them."""
        sums = (of[name] for of in (self.rates, self.chance) for name in self.blocks)
        tensors = [*(tensor for own in sums for tensor in own.sums()), *self.energy.values()]
        flat = processes.total(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))
        for task, shared in zip(self.tasks, self._shared(), strict=True):
            # A process that dropped a task's samples has shared inputs with all others for it, so that none needs them.
            for name in () if all(shared) else self.blocks:
                self.apart[task][name] = self._gathered(self.apart[task][name], processes)

    def _gathered(self, own: Reservoir, processes: Processes) -> Reservoir:
        if processes.size == 1:
            return own
        gathered = Reservoir(own.capacity)
        for rows, keys in processes.exchange(lambda: ((_on_cpu(own.rows), _on_cpu(own.keys)), None))[0]:
            gathered.merge(Reservoir(own.capacity, rows, keys))
        return gathered

    def settled(self) -> bool:
        """Whether the blocks of the default plan are settled at the wanted confidence."""
        return self.may_stop and self.confidence is not None and not any(map(any, self.undecided()))

    def undecided(self) -> tuple[list[bool], list[bool]]:
        """For modulators and for task tokens, the blocks whose place in the default plan the samples leave open."""
        half = share_of(0.5, len(self.blocks))
        by_range, by_null = (scores.undecided(half, 1 - (1 - self.level) / 2) for scores in self.scores)
        return by_range.tolist(), by_null.tolist()

    def describe_choice(self) -> list[str]:
        """In sentences, which blocks of the default plan the samples have settled."""
        if not self.may_stop:
            return ["Whether the choice of blocks is settled cannot be told: some tasks share no inputs."]
        half = share_of(0.5, len(self.blocks))
        chosen = [scores.highest()[:half] for scores in self.scores]
        return describe_choice(self.blocks, chosen, self.undecided(), self.level, self.samples)

    @property
    def level(self) -> float:
        """Confidence level of intervals."""
        return self.confidence or LEVEL

    def check_gradients(self) -> None:
        """Refuse tasks without any gradient, once all processes' batches are summed up.

        Raises:
            ValueError: The gradient of a task is zero, or at the level of rounding, at every token of every block.
        """
        energy = torch.stack(list(self.energy.values())).sum(0)
        for task, size in zip(self.tasks, energy.tolist(), strict=True):
            if not self.read[task]:
                raise ValueError(
                    f"the {self.samples} samples compared hold none of task {task!r}: read more, max_samples=None is all, or "
                    "give batches of all tasks in turn."
                )
            if size == 0:
                raise ValueError(
                    f"the gradient of task {task!r} is zero, or no more than rounding, at every token that enters a block, in "
                    f"all {self.read[task]} samples: there is nothing to compare. A head that begins at zero? Train it for a few "
                    "steps first. A loss without targets? Leave the task out: tasks=[the others]."
                )

    def report(self, widths: Mapping[str, int], variance_ratio: float) -> ConflictReport:
        """The report of what was measured."""
        quantile = normal_quantile(self.level)
        undecided = self.undecided()
        rates = torch.stack([self.rates[name].rates() for name in self.blocks])
        errors = torch.stack([self.rates[name].errors() for name in self.blocks])
        pairing = [["shared" if i != j else "" for j in range(len(self.tasks))] for i in range(len(self.tasks))]
        for i, first in enumerate(self.tasks):
            for j, second in enumerate(self.tasks[:i]):
                if self._shared()[i][j]:
                    continue
                pairing[i][j] = pairing[j][i] = "disjoint"
                for place, name in enumerate(self.blocks):
                    rate, error = self._disjoint(first, second, name)
                    rates[place, :, i, j] = rates[place, :, j, i] = rate
                    errors[place, :, i, j] = errors[place, :, j, i] = error
        chance = torch.stack([self.chance[name].rates_or_nan() for name in self.blocks])
        chance_errors = torch.stack([self.chance[name].errors() for name in self.blocks])
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
            level=self.level,
            undecided=tuple(name for name, *open_ in zip(self.blocks, *undecided, strict=True) if any(open_)),
            gradient_size=torch.stack([(self.energy[name] / self.rates[name].tokens()).sqrt() for name in self.blocks]),
            range_chance=chance[:, 0],
            null_chance=chance[:, 1],
            range_chance_halfwidth=quantile * chance_errors[:, 0],
            null_chance_halfwidth=quantile * chance_errors[:, 1],
            spectrum=torch.stack([self.spaces[name].sample_energy(SPECTRUM) for name in self.blocks]),
        )

    def _disjoint(self, first: str, second: str, block: str) -> tuple[Tensor, Tensor]:
        rows = [self.apart[task][block].rows for task in (first, second)]
        if rows[0] is None or rows[1] is None:
            missing = first if rows[0] is None else second
            raise ValueError(
                f"task {missing!r} gave no gradient that is not zero at block {block!r}: nothing to compare it by."
            )
        return disjoint_rate(rows[0], rows[1], self.spaces[block])


def _on_cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()


def _check_same_samples(conflicts: Mapping[str, Conflicts]) -> None:
    """A model that cuts its samples into windows for some of its blocks has more samples there than elsewhere."""
    first, samples = next((name, len(found.counted)) for name, found in conflicts.items())
    for name, found in conflicts.items():
        if len(found.counted) != samples:
            raise ValueError(
                f"{len(found.counted)} rows of tokens enter block {name!r}, but {samples} enter block {first!r}: "
                "what is one sample differs between them. Analyse blocks of one kind at a time: blocks='regular expression'."
            )
