"""Rates of conflict per block, pair of tasks and space: what plans are made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtme._shapes import Float
from dtme.plan.cost import ModelFlops

SPECTRUM = 64
"""How many of a block's directions a report keeps the energy of."""


@dataclass(frozen=True, eq=False)
class ConflictRates:
    """How often the tasks of a model conflict in each block, in the range space and in the null space (Def. 1, Sec. 4.2).

    Attributes:
        tasks: Tasks, in the order of the matrices.
        blocks: Block names, in the order in which they run.
        widths: Channels p of each block's tokens.
        range_rank: Dimension m of each block's range space.
        range_rate: Share of compared tokens that conflict in the range space; symmetric, zero diagonal.
        null_rate: The same in the null space.
        range_halfwidth: Half-width of the confidence interval of `range_rate`, the sample as the unit.
        null_halfwidth: Half-width of the confidence interval of `null_rate`.
        samples: Samples that were compared.
        pairing: Per pair, how it was compared: `"shared"` inputs, token by token, or `"disjoint"` inputs, by the sum
            over the tokens of a sample.
        zero_share: Per block, the share of (token, pair) left out because a gradient there is exactly zero.
        variance_ratio: r, the energy in the range space over that in the null space.
        level: Confidence level of the half-widths.
        undecided: Blocks whose place in the default plan the samples did not settle, at `level`.
        gradient_size: How large the gradient of each task's loss is, as the loss was given: the root of its mean squared norm
            over the tokens that enter a block. `None` in reports of earlier versions.
        flops: FLOPs of the plain model on the first batch, or why they could not be counted.
        range_chance: The null hypothesis beside `range_rate`: the rate between the two tasks' gradients at the same token of
            different samples. Not a number for pairs that share no input; `None` in reports of earlier versions.
        null_chance: The same beside `null_rate`.
        range_chance_halfwidth: Half-width of the confidence interval of `range_chance`.
        null_chance_halfwidth: Half-width of the confidence interval of `null_chance`.
        spectrum: Energy of each block's tokens along `SPECTRUM` of their directions, evenly from the strongest to the weakest,
            relative to the strongest; the first m of p are the range space. `None` in reports of earlier versions.
        notes: What to know beside the figures, in sentences: how much was read, what is no task, what is noise.
    """

    tasks: tuple[str, ...]
    blocks: tuple[str, ...]
    widths: tuple[int, ...]
    range_rank: tuple[int, ...]
    range_rate: Float[Tensor, "blocks tasks tasks"]
    null_rate: Float[Tensor, "blocks tasks tasks"]
    range_halfwidth: Float[Tensor, "blocks tasks tasks"]
    null_halfwidth: Float[Tensor, "blocks tasks tasks"]
    samples: int
    pairing: tuple[tuple[str, ...], ...]
    zero_share: tuple[float, ...]
    variance_ratio: float
    level: float
    undecided: tuple[str, ...] = ()
    gradient_size: Float[Tensor, "blocks tasks"] | None = None
    flops: ModelFlops | str = "this report is none of an analysis that counted FLOPs."
    range_chance: Float[Tensor, "blocks tasks tasks"] | None = None
    null_chance: Float[Tensor, "blocks tasks tasks"] | None = None
    range_chance_halfwidth: Float[Tensor, "blocks tasks tasks"] | None = None
    null_chance_halfwidth: Float[Tensor, "blocks tasks tasks"] | None = None
    notes: tuple[str, ...] = ()
    spectrum: Float[Tensor, "blocks directions"] | None = None

    def range_score(self) -> Float[Tensor, " blocks"]:
        """Mean rate over the pairs of tasks, in the range space: what modulators are placed by."""
        return _pair_mean(self.range_rate)

    def null_score(self) -> Float[Tensor, " blocks"]:
        """Mean rate over the pairs of tasks, in the null space: what task tokens are placed by."""
        return _pair_mean(self.null_rate)

    def range_chance_score(self) -> Float[Tensor, " blocks"] | None:
        """Mean of `range_chance` over the pairs that have one; what `range_score` is held against."""
        return None if self.range_chance is None else _known_mean(self.range_chance)

    def null_chance_score(self) -> Float[Tensor, " blocks"] | None:
        """Mean of `null_chance` over the pairs that have one; what `null_score` is held against."""
        return None if self.null_chance is None else _known_mean(self.null_chance)

    def even_weights(self) -> dict[str, float]:
        """Factors for the losses under which every task's gradient is equally large at the tokens.

        With the sizes `s[b, i]` of `gradient_size`, task i gets `exp(-mean_b log s[b, i])`, over the geometric mean of all
        tasks. A loss that outweighs the others takes more from them than any insert gives back, and weights cost nothing:
        try them before a plan. They multiply the losses as `analyze` was given them.

        Raises:
            ValueError: The report holds no sizes, or a task has no gradient.

        Example:
            >>> two = torch.zeros(1, 2, 2)
            >>> sizes = torch.tensor([[4.0, 1.0]])
            >>> known = {"widths": (8,), "range_rank": (4,), "samples": 1, "pairing": (), "zero_share": (0.0,)}
            >>> rates = ConflictRates(
            ...     ("a", "b"), ("block",), range_rate=two, null_rate=two, range_halfwidth=two, null_halfwidth=two,
            ...     variance_ratio=100.0, level=0.95, gradient_size=sizes, **known,
            ... )
            >>> rates.even_weights()
            {'a': 0.5, 'b': 2.0}
        """
        if self.gradient_size is None:
            raise ValueError(
                "this report holds no gradient sizes: it was written before they were. Call analyze again."
            )
        for place, task in enumerate(self.tasks):
            if not bool((self.gradient_size[:, place] > 0).all()):
                raise ValueError(f"the gradient of task {task!r} is zero at some block, and so no weight evens it.")
        logs = self.gradient_size.log().mean(0)
        return dict(zip(self.tasks, (logs.mean() - logs).exp().tolist(), strict=True))


def _pair_mean(rate: Float[Tensor, "blocks tasks tasks"]) -> Float[Tensor, " blocks"]:
    tasks = rate.shape[-1]
    return rate.sum((1, 2)) / (tasks * (tasks - 1))


def _known_mean(rate: Float[Tensor, "blocks tasks tasks"]) -> Float[Tensor, " blocks"]:
    first, second = torch.triu_indices(*rate.shape[1:], offset=1)
    return rate[:, first, second].nanmean(1)
