"""The report of an analysis: rates of conflict per block, pair of tasks and space, and the plans that follow from them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dtme._files import write_text
from dtme.plan.budget import choose_within, find_steps
from dtme.plan.placement import Inserts, Select, place_inserts
from dtme.plan.plan import Plan
from dtme.plan.rates import ConflictRates
from dtme.plan.recommended import recommend
from dtme.report.page import write_page
from dtme.report.serialization import read_fields, write_fields
from dtme.report.table import format_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ConflictReport(ConflictRates):
    """Where the tasks of a model conflict: the rates that `ConflictRates` names one by one, to print, draw, save and plan by."""

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
        plan is found, is told in `dtme.plan.budget`. Given the cost of the plan without `max_cost`, it resolves as much.

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
            >>> import torch
            >>> rate = torch.tensor([0.1, 0.4]).view(2, 1, 1) * (1 - torch.eye(2))
            >>> report = ConflictReport(("a", "b"), ("x.0", "x.1"), (8, 8), (3, 3), rate, rate.flip(0), rate, rate, 9,
            ...                         (("", "shared"), ("shared", "")), (0.0, 0.0), 100.0, 0.95)
            >>> plan = report.plan(fraction=0.5)
            >>> plan.modulate, plan.expand
            ({'x.1': ('a', 'b')}, {'x.0': ('a', 'b')})
        """
        inserts = Inserts(fraction, modulation, expansion, adaptation, tokens_per_task, modulator, rank)
        if max_cost is None:
            return place_inserts(self, inserts, select, pair_threshold, seed)
        if select != "conflict" or pair_threshold is not None:
            raise ValueError(
                f"max_cost={max_cost} chooses blocks and tasks by the conflict they resolve: leave out select={select!r} and "
                f"pair_threshold={pair_threshold}."
            )
        return choose_within(find_steps(self, inserts), max_cost)

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
            >>> import torch
            >>> from dtme.plan.cost import BlockFlops, ModelFlops
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
        return recommend(self, max_cost, rank)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, whole or not at all."""
        write_fields(Path(path), {field.name: getattr(self, field.name) for field in fields(self)})

    def to_json(self, path: str | Path) -> None:
        """As `save`."""
        self.save(path)

    def to_html(self, path: str | Path, plan: Plan | None = None, results: Any = None) -> None:
        """Write the report as one page for a browser, whole or not at all: the verdict first, every term explained.

        The page fetches nothing, follows the light or dark mode of the reader, and can be printed.

        Args:
            path: Of the page.
            plan: One to show over the trunk, with its streams and their price.
            results: Rows of results to show beside: a list of mappings, or a mapping that holds them as `"rows"`.

        Raises:
            ValueError: The plan names blocks that the report has not, or results are no rows.
        """
        write_text(Path(path), write_page(self, plan, results))

    @classmethod
    def load(cls, path: str | Path) -> ConflictReport:
        """Read a report that `save` wrote.

        Raises:
            ValueError: The file is no report.
        """
        # FLOPs were not counted by every earlier version
        return cls(
            **read_fields(Path(path), {"flops": cls.flops, "notes": ()}, tuple(field.name for field in fields(cls)))
        )

    def plot(self) -> Figure:
        """The rates as two maps, blocks by pairs of tasks, one for each space.

        Raises:
            ModuleNotFoundError: matplotlib is not installed: `pip install "dtme[viz]"`.
        """
        from dtme.viz.conflict_maps import conflict_maps

        return conflict_maps(self)

    def plot_plan(self, plan: Plan) -> Figure:
        """A plan over the trunk of this report: where streams part, and what sits on them.

        Raises:
            ValueError: The plan names a block that the report has not.
            ModuleNotFoundError: matplotlib is not installed: `pip install "dtme[viz]"`.
        """
        from dtme.viz.plan_map import plan_map

        return plan_map(plan, self.blocks)

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

        inserts = Inserts(fraction, expansion=expansion)
        steps = find_steps(self, inserts)
        return cost_steps(self, steps, place_inserts(self, inserts))

    def __str__(self) -> str:
        """A table: per block the rank, both scores with half-widths and chance, and the pair that conflicts most."""
        return format_table(self)
