"""What the second round of an analysis sums up, and the report it ends in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dtme.capture import Capture
from dtme.conflict import token_conflicts
from dtme.rates import BlockScores, RateSums, Reservoir, disjoint_rate, normal_quantile
from dtme.report import ConflictReport
from dtme.token_space import TokenSpace

DISJOINT_SAMPLES = 512
"""Samples kept per task to compare tasks that never share an input."""


class Measurement:
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
        self.samples += caught.samples()
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
