"""When a choice of blocks is settled: more samples would not change which of them a plan ranks highest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dtme._shapes import Bool, Float, Int
from dtme.plan.placement import highest_first

TIE = 0.02
"""Scores closer than this count as tied when a choice of blocks is judged settled."""

ROWS = 1024
"""Samples whose counts are kept one by one."""


class BlockScores:
    """The scores of all blocks in one space, as a plan ranks them, and how far they may still move.

    A score is the mean over the pairs of tasks of `sum_s c_s / sum_s n_s`, c conflicting and n counted tokens of sample s. Its
    spread is that of `(c_s - rate n_s) / mean n`, by which one sample moves it (delta method). The rate is not known before
    the end, so what is kept are the counts of every sample, whole numbers; of more than `ROWS`, the sums over two samples, then
    over four, and so on, whose squares tell the same spread.
    """

    def __init__(self, blocks: int, pairs: int) -> None:
        self.samples = 0
        self.counted = torch.zeros(blocks, pairs, dtype=torch.float64)
        self.conflicting = torch.zeros(blocks, pairs, dtype=torch.float64)
        self._size = 1
        self._rows = torch.zeros(0, 2, blocks, pairs, dtype=torch.int32)
        self._left = self._rows

    def add(
        self, conflicting: Int[Tensor, "samples blocks pairs"], counted: Int[Tensor, "samples blocks pairs"]
    ) -> None:
        """Add what a batch counted; samples in which nothing could be compared are left out."""
        both = torch.stack([counted, conflicting], 1)[counted.sum((1, 2)) > 0].to("cpu", torch.int32)
        self.samples += len(both)
        sums = both.sum(0).to(torch.float64)
        self.counted += sums[0]
        self.conflicting += sums[1]
        self._left = torch.cat([self._left, both])
        whole = len(self._left) // self._size * self._size
        new = self._left[:whole].unflatten(0, (-1, self._size)).sum(1, dtype=torch.int32)
        self._rows, self._left = torch.cat([self._rows, new]), self._left[whole:].clone()
        while len(self._rows) > ROWS:
            even = len(self._rows) // 2 * 2
            halved = self._rows[:even].unflatten(0, (-1, 2)).sum(1, dtype=torch.int32)
            self._rows, self._size = torch.cat([halved, self._rows[even:]]), 2 * self._size

    def scores(self) -> Float[Tensor, " blocks"]:
        """Mean rate over the pairs; the rate is 0 where nothing was counted."""
        return self._rates().mean(1)

    def highest(self) -> list[int]:
        """The places of the blocks, highest score first."""
        return highest_first(self.scores()).tolist()

    def covariance(self) -> Float[Tensor, "blocks blocks"]:
        """Of what one sample says about the scores."""
        shares = self._shares()
        moved = self._weighted(torch.stack([-self._rates() * shares, shares]))
        return moved.T @ moved / (self.samples - 1)

    def undecided(self, chosen: int, level: float) -> Bool[Tensor, " blocks"]:
        """Blocks whose side of the cut is open: with confidence `level`, one left out might beat one chosen by more than a tie.

        Valid at every look, however often it is asked while samples come in, in random order: differences of block scores,
        paired by sample, are held against an asymptotic confidence sequence (a normal mixture, tightest near 128 samples),
        with the error shared among all comparisons. Only one side of a difference can be wrong; the sequence covers both, to
        be safe. What is rare may not have shown in a few samples, so one more of ordinary size is counted among them, all of
        whose tokens conflict in one of the two blocks and none in the other. All is open as long as two tasks have not met.
        """
        blocks = len(self.counted)
        open_ = torch.zeros(blocks, dtype=torch.bool)
        if chosen >= blocks:
            return open_
        if self.samples < 16 or not bool(self.counted.any(0).all()):
            return ~open_
        scores, covariance, unseen = self.scores(), self.covariance(), self._unseen()
        spread = covariance.diagonal().unsqueeze(1) + covariance.diagonal().unsqueeze(0) - 2 * covariance
        spread = spread.clamp_min(0) + torch.maximum(unseen.unsqueeze(1), unseen.unsqueeze(0)) / self.samples
        order = highest_first(scores)
        inside, outside = order[:chosen], order[chosen:]
        alpha = (1 - level) / (len(inside) * len(outside))
        width = spread.sqrt() * confidence_sequence(self.samples, alpha)
        unsure = scores[inside].unsqueeze(1) - scores[outside].unsqueeze(0) - width[inside][:, outside] < -TIE
        open_[inside] = unsure.any(1)
        open_[outside] = unsure.any(0)
        return open_

    def _rates(self) -> Float[Tensor, "blocks pairs"]:
        return self.conflicting / self.counted.clamp_min(1)

    def _shares(self) -> Float[Tensor, "blocks pairs"]:
        """What one token counts in the score of its block, times the number of samples."""
        return torch.where(self.counted > 0, self.samples / self.counted.clamp_min(1), 0.0) / self.counted.shape[1]

    def _unseen(self) -> Float[Tensor, " blocks"]:
        """The square by which a sample that conflicts at every token moves a score, on average: 1 where all count the same."""
        shares = self._shares()
        moved = self._weighted(torch.stack([shares, torch.zeros_like(shares)]))
        return moved.square().sum(0) / (self.samples * self._size)

    def _weighted(self, weights: Float[Tensor, "2 blocks pairs"]) -> Float[Tensor, "rows blocks"]:
        """Of every row the sum over the pairs of its weighted counts."""
        rows = torch.cat([self._rows, self._left])
        return torch.einsum("scbp,cbp->sb", rows.to(torch.float64), weights)


def confidence_sequence(samples: int, alpha: float, tightest_at: int = 128) -> float:
    """Half-width, in standard deviations, of a confidence sequence for a mean (Waudby-Smith et al. 2024, Thm. 2.2).

    `sqrt(2 (n r^2 + 1) / (n r)^2 * log(sqrt(n r^2 + 1) / alpha))`, r chosen so that it is tightest near a given n.
    """
    log_odds = -2 * math.log(alpha)
    tuning = (log_odds + math.log(log_odds + 1)) / tightest_at
    mixed = samples * tuning + 1
    return math.sqrt(2 * mixed / (samples**2 * tuning) * math.log(math.sqrt(mixed) / alpha))
