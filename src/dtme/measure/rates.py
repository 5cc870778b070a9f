"""From counts to rates: sums over samples, and their spread with the sample as the unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dtme._shapes import Float, Int
from dtme.measure.conflict import Conflicts, multiply_projected, scale_to_unit
from dtme.measure.token_space import TokenSpace


def normal_quantile(level: float) -> float:
    """How many standard errors a two-sided interval of a level is wide on each side.

    Example:
        >>> round(normal_quantile(0.95), 2)
        1.96
    """
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))


class RateSums:
    """Running sums from which rates of conflict and their standard errors follow; memory does not grow with samples.

    A rate is a ratio of sums over samples, `sum_s c_s / sum_s n_s`, c conflicting and n counted tokens. Tokens of one
    sample depend on each other, so the standard error takes the sample as the unit:
    `sqrt(S / (S - 1) * sum_s (c_s - rate n_s)^2) / sum_s n_s` over S samples.
    """

    def __init__(self, tasks: int) -> None:
        zeros = torch.zeros(tasks, tasks, dtype=torch.float64)
        self.samples = zeros.clone()
        self.counted = zeros.clone()
        self.squares_counted = zeros.clone()
        self.conflicting = torch.zeros(2, tasks, tasks, dtype=torch.float64)
        self.squares = torch.zeros(2, tasks, tasks, dtype=torch.float64)
        self.products = torch.zeros(2, tasks, tasks, dtype=torch.float64)
        self.possible = zeros.clone()

    def sums(self) -> tuple[Tensor, ...]:
        """Everything that adds up over batches and processes: whole numbers, so that no order of adding changes them."""
        return (
            self.samples,
            self.possible,
            self.counted,
            self.squares_counted,
            self.conflicting,
            self.squares,
            self.products,
        )

    def tokens(self) -> Float[Tensor, " tasks"]:
        """How many tokens each task had a gradient at, exactly zero or not."""
        return self.possible.diagonal()

    def add(self, conflicts: Conflicts, present: list[int], tokens: Int[Tensor, " samples"]) -> None:
        """Add a batch in which the tasks `present` were compared on samples of so many valid tokens."""
        rows = torch.tensor(present)
        grid = (rows.unsqueeze(1), rows.unsqueeze(0))
        counted = conflicts.counted.to("cpu", torch.float64)
        both = torch.stack([conflicts.in_range, conflicts.in_null]).to("cpu", torch.float64)
        self.samples[grid] += (counted > 0).sum(0)
        self.possible[grid] += tokens.sum().to("cpu", torch.float64)
        self.counted[grid] += counted.sum(0)
        self.squares_counted[grid] += counted.square().sum(0)
        for space in range(2):
            self.conflicting[space][grid] += both[space].sum(0)
            self.squares[space][grid] += both[space].square().sum(0)
            self.products[space][grid] += (both[space] * counted).sum(0)

    def rates(self) -> Float[Tensor, "2 tasks tasks"]:
        """Rates in range and null space; 0 where nothing was counted."""
        return self.conflicting / self.counted.clamp_min(1)

    def rates_or_nan(self) -> Float[Tensor, "2 tasks tasks"]:
        """Rates in range and null space; not a number where nothing was counted, 0 on the diagonal."""
        rates = torch.where(self.counted > 0, self.rates(), math.nan)
        return rates.masked_fill(torch.eye(len(self.samples), dtype=torch.bool), 0.0)

    def errors(self) -> Float[Tensor, "2 tasks tasks"]:
        """Standard errors of the rates; infinite where fewer than two samples could be compared, 0 on the diagonal."""
        rates = self.rates()
        residual = self.squares - 2 * rates * self.products + rates.square() * self.squares_counted
        correction = torch.where(self.samples > 1, self.samples / (self.samples - 1).clamp_min(1), math.inf)
        errors = (correction * residual.clamp_min(0)).sqrt() / self.counted.clamp_min(1)
        errors = torch.where(self.samples > 1, errors, math.inf)
        return errors.masked_fill(torch.eye(len(self.samples), dtype=torch.bool), 0.0)

    def zero_share(self) -> float:
        """Share of (token, pair) left out because a gradient there is exactly zero."""
        possible = float(self.possible.sum() - self.possible.diagonal().sum())
        return 1 - float(self.counted.sum()) / possible if possible else 0.0


def disjoint_rate(
    first: Float[Tensor, "m p"], second: Float[Tensor, "n p"], space: TokenSpace
) -> tuple[Float[Tensor, " 2"], Float[Tensor, " 2"]]:
    """Rate of conflict, in range and null space, of two tasks that never share an input, and its standard error.

    Per sample the gradient by a shift of every token, `h_s = sum_k g_s[k]`; the rate is the share of pairs of one sample
    of each task with `h_s . h_s' <= 0` after projection, both not zero. The error is that of a two-sample U-statistic.
    """
    (one, alive_one), (two, alive_two) = scale_to_unit(first), scale_to_unit(second)
    one, two = one[alive_one], two[alive_two]
    products = multiply_projected(torch.cat([one, two]), space)
    signs = torch.stack([(grams[: len(one), len(one) :] <= 0) for grams in products]).to(torch.float64)
    if signs.shape[1] == 0 or signs.shape[2] == 0:
        return torch.zeros(2, dtype=torch.float64), torch.full((2,), math.inf, dtype=torch.float64)
    rates = signs.mean((1, 2))
    if min(signs.shape[1:]) < 2:
        return rates.cpu(), torch.full((2,), math.inf, dtype=torch.float64)
    variance = signs.mean(2).var(1) / signs.shape[1] + signs.mean(1).var(1) / signs.shape[2]
    return rates.cpu(), variance.sqrt().cpu()
