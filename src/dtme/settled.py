"""When a choice of blocks is settled: more samples would not change which of them a plan ranks highest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dtme._shapes import Bool, Float, Int

TIE = 0.02
"""Scores closer than this count as tied when a choice of blocks is judged settled."""


def highest_first(scores: Float[Tensor, " blocks"]) -> Int[Tensor, " blocks"]:
    """The places of the blocks, highest score first; of blocks that tie, the later one.

    Example:
        >>> highest_first(torch.tensor([0.5, 0.7, 0.5])).tolist()
        [1, 2, 0]
    """
    scores = scores.to(torch.float64).round(decimals=12)  # scores that differ by rounding alone are equal
    return len(scores) - 1 - scores.flip(0).argsort(descending=True, stable=True)


class BlockScores:
    """The scores of all blocks in one space, as a plan ranks them, and how far they may still move.

    A score is the mean over the pairs of tasks of `sum_s c_s / sum_s n_s`, c conflicting and n counted tokens of sample s. Its
    spread is that of `(c_s - rate n_s) / mean n`, by which one sample moves it (delta method). The rate is not known before
    the end, so what is kept are the sums and products of all c and n: `(2 blocks pairs)^2` numbers, however many samples there
    are, and whole ones, so that no order of adding changes them.
    """

    def __init__(self, blocks: int, pairs: int) -> None:
        self.samples = 0
        self.counted = torch.zeros(blocks, pairs, dtype=torch.float64)
        self.conflicting = torch.zeros(blocks, pairs, dtype=torch.float64)
        self._products = torch.zeros(blocks, 2 * pairs, blocks, 2 * pairs, dtype=torch.float64)

    def add(
        self, conflicting: Int[Tensor, "samples blocks pairs"], counted: Int[Tensor, "samples blocks pairs"]
    ) -> None:
        """Add what a batch counted; samples in which nothing could be compared are left out."""
        both = torch.cat([counted, conflicting], 2)[counted.sum((1, 2)) > 0].to("cpu", torch.float64)
        self.samples += len(both)
        own_counted, own_conflicting = both.sum(0).chunk(2, 1)
        self.counted += own_counted
        self.conflicting += own_conflicting
        flat = both.flatten(1)
        self._products.view(flat.shape[1], flat.shape[1]).addmm_(flat.T, flat)

    def scores(self) -> Float[Tensor, " blocks"]:
        """Mean rate over the pairs; the rate is 0 where nothing was counted."""
        return self._rates().mean(1)

    def covariance(self) -> Float[Tensor, "blocks blocks"]:
        """Of what one sample says about the scores."""
        shares, rates = self._shares(), self._rates()
        return self._summed(torch.cat([-rates * shares, shares], 1)) / (self.samples - 1)

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
        return self._summed(torch.cat([shares, 0 * shares], 1)).diagonal() / self.samples

    def _summed(self, weights: Float[Tensor, "blocks columns"]) -> Float[Tensor, "blocks blocks"]:
        """Sum over the samples of the products of two blocks' weighted counts."""
        blocks, columns = weights.shape
        half = weights.unsqueeze(1) @ self._products.view(blocks, columns, blocks * columns)
        return (half.view(blocks, blocks, columns) * weights).sum(2)


def confidence_sequence(samples: int, alpha: float, tightest_at: int = 128) -> float:
    """Half-width, in standard deviations, of a confidence sequence for a mean (Waudby-Smith et al. 2024, Thm. 2.2).

    `sqrt(2 (n r^2 + 1) / (n r)^2 * log(sqrt(n r^2 + 1) / alpha))`, r chosen so that it is tightest near a given n.
    """
    log_odds = -2 * math.log(alpha)
    tuning = (log_odds + math.log(log_odds + 1)) / tightest_at
    mixed = samples * tuning + 1
    return math.sqrt(2 * mixed / (samples**2 * tuning) * math.log(math.sqrt(mixed) / alpha))
