"""The report of an analysis: rates of conflict per block, pair of tasks and space, and the plans that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dtme import report_file
from dtme._shapes import Float
from dtme.budget import staircase, within
from dtme.flops import ModelFlops
from dtme.parting import Inserts, share_of
from dtme.plan import Plan
from dtme.printed import printed
from dtme.recommendation import recommendation
from dtme.settled import highest_first

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Select = Literal["conflict", "random", "reversed", "swapped"]


@dataclass(frozen=True, eq=False)
class ConflictReport:
    """Where the tasks of a model conflict.

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
        undecided: Blocks whose place in the default plan the samples did not settle, where `confidence` was asked for.
        gradient_size: How large the gradient of each task's loss is, as the loss was given: the root of its mean squared norm
            over the tokens that enter a block. `None` in reports of earlier versions.
        flops: FLOPs of the plain model on the first batch, or why they could not be counted.
        range_chance: The null hypothesis beside `range_rate`: the rate between the two tasks' gradients at the same token of
            different samples. Not a number for pairs that share no input; `None` in reports of earlier versions.
        null_chance: The same beside `null_rate`.
        range_chance_halfwidth: Half-width of the confidence interval of `range_chance`.
        null_chance_halfwidth: Half-width of the confidence interval of `null_chance`.
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

    def plan(
        self,
        *,
        fraction: float = 0.5,
        select: Select = "conflict",
        modulation: bool = True,
        expansion: bool = True,
        tokens_per_task: int = 1,
        pair_threshold: float | None = None,
        seed: int = 0,
        modulator: Literal["affine", "batchnorm"] = "affine",
        adaptation: bool = False,
        rank: int = 4,
        max_cost: float | None = None,
    ) -> Plan:
        """Choose the blocks that get modulators and those that get task tokens (Alg. 1, second half; Sec. 5.2).

        Modulators go to the blocks with the highest range score, task tokens to those with the highest null score; of
        blocks that tie, the later one, which costs less.

        With `max_cost` the plan is instead the one that resolves most conflict while inference of all tasks costs at most
        so many times what the plain model's does: tasks share a stream and part late. What counts as resolved, and how the
        plan is found, is told in `dtme.budget`. At no less than the cost of the plan without `max_cost`, it resolves as much.

        Args:
            fraction: Share of the blocks, for each of the two.
            select: `"conflict"`, or a control: `"random"` blocks, `"reversed"` (the lowest scores, Tab. 2), `"swapped"`
                (modulators by the null score, task tokens by the range score, Tab. 13).
            modulation: Insert modulators.
            expansion: Insert task tokens.
            tokens_per_task: n task tokens per task and block.
            pair_threshold: Insert only for tasks in a pair whose rate in that block and space is at least this; the
                others share a stream. `None` inserts for all tasks.
            seed: For `select="random"`.
            modulator: `"affine"`, or `"batchnorm"` (Tab. 11).
            adaptation: Also give the blocks of the modulators low-rank updates of their linear layers (ours).
            rank: Of these updates.
            max_cost: What inference of all tasks may cost, as a multiple of the plain model's, `1.5` for instance.

        Raises:
            ValueError: An option is out of range, or nothing can be resolved within `max_cost`.

        Example:
            >>> rate = torch.tensor([0.1, 0.4]).view(2, 1, 1) * (1 - torch.eye(2))
            >>> report = ConflictReport(("a", "b"), ("x.0", "x.1"), (8, 8), (3, 3), rate, rate.flip(0), rate, rate, 9,
            ...                         (("", "shared"), ("shared", "")), (0.0, 0.0), 100.0, 0.95)
            >>> plan = report.plan(fraction=0.5)
            >>> plan.modulate, plan.expand
            ({'x.1': ('a', 'b')}, {'x.0': ('a', 'b')})
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction={fraction}: give a share of the blocks above 0 and up to 1.")
        if select not in ("conflict", "random", "reversed", "swapped"):
            raise ValueError(f"select={select!r}: choose 'conflict', 'random', 'reversed' or 'swapped'.")
        if not (modulation or expansion or adaptation):
            raise ValueError("modulation=False and expansion=False: the plan would be empty. Leave one of them on.")
        if max_cost is not None:
            if select != "conflict" or pair_threshold is not None:
                raise ValueError(
                    f"max_cost={max_cost} chooses blocks and tasks by the conflict they resolve: leave out select={select!r} and "
                    f"pair_threshold={pair_threshold}."
                )
            inserts = Inserts(fraction, modulation, expansion, adaptation, tokens_per_task, modulator, rank)
            return within(staircase(self, inserts), max_cost)
        count = share_of(fraction, len(self.blocks))
        by_range, by_null = self.range_score(), self.null_score()
        if select == "random":
            by_range, by_null = torch.rand(2, len(self.blocks), generator=torch.Generator().manual_seed(seed)).unbind()
        elif select == "reversed":
            by_range, by_null = -by_range, -by_null
        elif select == "swapped":
            by_range, by_null = by_null, by_range
        modulate = self._place(by_range, count, self.range_rate, pair_threshold)
        expand = self._place(by_null, count, self.null_rate, pair_threshold)
        return Plan(
            tasks=self.tasks,
            modulate=modulate if modulation else {},
            expand=expand if expansion else {},
            adapt=modulate if adaptation else {},
            tokens_per_task=tokens_per_task,
            rank=rank,
            modulator=modulator,
        )

    def recommended(self, *, max_cost: float | None = None, rank: int | None = 12) -> Plan:
        """Our own default, not the paper's: low-rank updates for every task at the end of the trunk.

        Or a copy for every task but the first, which goes on through the trunk itself: it gains more at the same cost, for
        the parameters of what is copied. Either learns best at about three times the trunk's learning rate.

        Streams are what a plan costs, so they part late and carry what is strong: more rank adds next to no time. They part
        in the MLP of the last block, where a block has one behind its attention, and at the block where it has none; a budget
        takes them further forward. Weights of the losses cost nothing: tune them first, or begin with `even_weights()`.
        `docs/findings.md` holds the evidence.

        Args:
            max_cost: What inference of all tasks may cost, as a multiple of the plain model's: streams part as far forward
                as that allows. `None` is the cheapest plan.
            rank: Of the updates; `None` for copies.

        Raises:
            ValueError: The report holds no FLOPs, the blocks have no linear layers, or not even the cheapest plan fits the
                budget.

        Example:
            >>> from dtme.block_flops import BlockFlops
            >>> rate = torch.full((3, 2, 2), 0.4) * (1 - torch.eye(2))
            >>> names = ("x.0", "x.1", "x.2")
            >>> mlp = BlockFlops(60, updates=(1, 0), last=True)
            >>> flops = ModelFlops(10, {name: BlockFlops(100, updates=(2, 0), parts={f"{name}.mlp": mlp}) for name in names})
            >>> report = ConflictReport(("a", "b"), names, (8,) * 3, (3,) * 3, rate, rate, rate, rate, 9,
            ...                         (("", "shared"), ("shared", "")), (0.0,) * 3, 100.0, 0.95, flops=flops)
            >>> list(report.recommended().adapt), list(report.recommended(max_cost=1.8).adapt)
            (['x.2.mlp'], ['x.1.mlp', 'x.2'])
            >>> report.recommended(rank=None).copies
            {'x.2.mlp': ('b',)}
        """
        return recommendation(self, max_cost, rank)

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
            >>> report = ConflictReport(
            ...     ("a", "b"), ("block",), range_rate=two, null_rate=two, range_halfwidth=two, null_halfwidth=two,
            ...     variance_ratio=100.0, level=0.95, gradient_size=sizes, **known,
            ... )
            >>> report.even_weights()
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

    def _place(self, score: Tensor, count: int, rate: Tensor, threshold: float | None) -> dict[str, tuple[str, ...]]:
        placed = {}
        for block in sorted(highest_first(score)[:count].tolist()):
            fighting = rate[block].amax(0) >= (-1.0 if threshold is None else threshold)
            placed[self.blocks[block]] = tuple(
                task for task, fights in zip(self.tasks, fighting.tolist(), strict=True) if fights
            )
        return {block: tasks for block, tasks in placed.items() if tasks}

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, whole or not at all."""
        report_file.write(Path(path), {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> ConflictReport:
        """Read a report that `save` wrote.

        Raises:
            ValueError: The file is no report.
        """
        # FLOPs were not counted by every earlier version
        return cls(**report_file.read(Path(path), {"flops": cls.flops}, tuple(field.name for field in fields(cls))))

    def plot(self) -> Figure:
        """The rates as two maps, blocks by pairs of tasks, one for each space.

        Raises:
            ModuleNotFoundError: matplotlib is not installed: `pip install "dtme[viz]"`.
        """
        from dtme.viz.conflict_maps import conflict_maps

        return conflict_maps(self)

    def plot_costs(self, *, fraction: float = 0.5, expansion: bool = True) -> Figure:
        """What conflict can be resolved at what cost of inference: the plans of `plan(max_cost=...)`, from 1 on.

        Args:
            fraction: Share of the blocks that hold modulators, or task tokens, at most.
            expansion: Plan task tokens, too.

        Raises:
            ValueError: The report holds no FLOPs, or no conflict was measured.
            ModuleNotFoundError: matplotlib is not installed: `pip install "dtme[viz]"`.
        """
        from dtme.viz.cost_steps import cost_steps

        steps = staircase(self, Inserts(fraction, expansion=expansion))
        return cost_steps(self, steps, self.plan(fraction=fraction, expansion=expansion))

    def __str__(self) -> str:
        """A table: per block the rank, both scores with half-widths and chance, and the pair that conflicts most."""
        return printed(self)


def _pair_mean(rate: Float[Tensor, "blocks tasks tasks"]) -> Float[Tensor, " blocks"]:
    tasks = rate.shape[-1]
    return rate.sum((1, 2)) / (tasks * (tasks - 1))


def _known_mean(rate: Float[Tensor, "blocks tasks tasks"]) -> Float[Tensor, " blocks"]:
    first, second = torch.triu_indices(*rate.shape[1:], offset=1)
    return rate[:, first, second].nanmean(1)
