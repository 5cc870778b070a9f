"""The rows of the table: what each does that plain multi-task training does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from dtme.plan.plan import Plan
from dtme.report.report import ConflictReport
from experiments.text.alternatives import lora, norms_and_biases
from experiments.text.data.tasks import TextTask
from experiments.text.recipe import TextRecipe

Planner = Callable[[ConflictReport, TextRecipe, int], Plan]
"""From what was measured, the recipe and the seed to a plan."""
Change = Callable[[nn.Module, Sequence[TextTask], TextRecipe], Any]
"""From the model to the one that takes its place, and tells its `added_parameters()`."""


@dataclass(frozen=True)
class TextMethod:
    """One row of the table; whatever is left out is as in plain multi-task training.

    Attributes:
        name: As the command line and the table call it.
        says: What it does.
        plan: What is inserted.
        change: What takes the model's place.
        rate: Which learning rate of the recipe is for what `change` adds.
        as_dearest: Train for as many steps as take the time of the dearest other row.
    """

    name: str
    says: str
    plan: Planner | None = None
    change: Change | None = None
    rate: Literal["insert_rate", "low_rank_rate"] = "insert_rate"
    as_dearest: bool = False


def planned(
    *,
    modulation: bool = False,
    expansion: bool = False,
    adaptation: bool = False,
    select: Literal["conflict", "random"] = "conflict",
    fraction: float | None = None,
) -> Planner:
    """Blocks as a report chooses them; with `adaptation`, the blocks of range conflict get low-rank updates."""

    def plan(report: ConflictReport, recipe: TextRecipe, seed: int) -> Plan:
        made = report.plan(
            fraction=fraction or recipe.fraction,
            select=select,
            modulation=modulation,
            expansion=expansion,
            adaptation=adaptation,
            seed=seed,
        )
        return replace(made, rank=recipe.rank)

    return plan


def copied(report: ConflictReport, recipe: TextRecipe, seed: int) -> Plan:
    """A copy of the last block for each task but the first, which keeps the block."""
    return Plan(report.tasks, copies={report.blocks[-1]: report.tasks[1:]})


RECOMMENDED_RANK = 10
"""Of updates in all layers of the last block: below 2 % of MiniLM for six tasks."""


def recommended(report: ConflictReport, recipe: TextRecipe, seed: int) -> Plan:
    """Our own default, at the end of the trunk."""
    return report.recommended(rank=RECOMMENDED_RANK)


METHODS = (
    TextMethod("ST", "one model per task, on as many of its sentences as MT sees of it"),
    TextMethod("MT", "plain multi-task training"),
    TextMethod("MT as long as the dearest", "MT for the wall-clock of the dearest other row", as_dearest=True),
    TextMethod("TM", "modulators by range conflict", planned(modulation=True)),
    TextMethod("TE", "task tokens by null conflict", planned(expansion=True)),
    TextMethod("TM+TE", "the paper's method", planned(modulation=True, expansion=True)),
    TextMethod("Adapt", "low-rank updates per task by range conflict (ours)", planned(adaptation=True)),
    TextMethod(
        "TM+TE+Adapt",
        "the paper's method and low-rank updates",
        planned(modulation=True, expansion=True, adaptation=True),
    ),
    TextMethod("TM+TE random", "TM+TE in random blocks", planned(modulation=True, expansion=True, select="random")),
    TextMethod("TM+TE all", "TM+TE in every block", planned(modulation=True, expansion=True, fraction=1.0)),
    TextMethod("recommended", "rank-10 updates per task at the end of the trunk: our default", recommended),
    TextMethod("own last block", "a copy of the last block per task (ours)", copied),
    TextMethod("LoRA per task", "rank 8 on queries and values of every block", change=lora, rate="low_rank_rate"),
    TextMethod("Norms per task", "LayerNorms and biases of each task's own in every block", change=norms_and_biases),
)
"""In the order of every table."""


def method_of(name: str) -> TextMethod:
    """The method of that name.

    Raises:
        ValueError: There is none; the message lists them.
    """
    for method in METHODS:
        if method.name == name:
            return method
    raise ValueError(f"methods: there is no {name!r}. Choose from: {', '.join(method.name for method in METHODS)}.")
