"""The methods that a table compares: what each does that plain multi-task training does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from experiments import baselines
from experiments.dense.alternatives import (
    COUNTED,
    Balancer,
    Change,
    by,
    drawing,
    dwa,
    final_affine,
    looking,
    lora_in_the_last_block,
    own_blocks,
    recon,
    weighing,
    wider,
)
from experiments.dense.branch_point import BranchPoint
from experiments.dense.experiment import TUNED_WEIGHTS
from experiments.dense.recipe import Recipe
from experiments.methods.placements import (
    Planner,
    at_random_behind_the_same_block,
    by_conflict,
    from_the_mlp_on,
    last_blocks,
    other_tasks,
    recommended,
    within_cost,
)


@dataclass(frozen=True)
class Method:
    """One row of a table; whatever is left out is as in plain multi-task training.

    Attributes:
        name: As the command line and the table call it.
        says: What it does, for the notes below a table.
        plan: What is inserted.
        balance: How the losses become gradients.
        change: What takes the model's place.
        rate: Which learning rate of the recipe is for what `change` adds; the trunk's if `None`.
        settings: What of the recipe is otherwise for this row alone; nothing that the weights it begins with depend on.
        weights: Per suite the weights of the losses, if not the suite's own; or `"even"`: those under which the tasks' gradients
            are equally large where it branches off.
        branch: Where it branches off plain training, and the analysis its plan comes from; or off another row, whose inserts
            stay and are joined by those of the plan.
        shape: The recipe of a model of another shape, which begins with a start of its own.
        counted: Share of the steps in which it first counts how all tasks' gradients conflict, to decide what `change` changes.
        lasts: Another method's name and a currency: train for as many steps as that method's training buys in it.
        longer: Train for so many times the steps.
    """

    name: str
    says: str
    plan: Planner | None = None
    balance: Balancer | None = None
    change: Change | None = None
    rate: Literal["insert_rate", "low_rank_rate"] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, float]] | Literal["even"] | None = None
    branch: BranchPoint = field(default_factory=BranchPoint)
    shape: Callable[[Recipe], Recipe] | None = None
    counted: float = 0.0
    lasts: tuple[str, Literal["time", "FLOPs"]] | None = None
    longer: float = 1.0


def watched(method: Method) -> Method:
    """A method without a balancing of its own, trained as it is, the tasks' parameter gradients looked at now and then."""
    return replace(method, name=f"{method.name}, watched", balance=looking)


_WITH_WEIGHTS_IN_COMMON_USE = (
    Method("ST", "one model per task"),
    Method("MT", "plain multi-task training, the weighted sum of the losses"),
    Method("MT 2x", "MT for twice the steps", longer=2.0),
    Method("TM", "modulators by range conflict", by_conflict(modulation=True)),
    Method("TE", "task tokens by null conflict", by_conflict(expansion=True)),
    Method("TM+TE", "the paper's method", by_conflict(modulation=True, expansion=True)),
    Method("recommended", "this library's own default: rank-12 updates where streams part last", recommended),
    Method("MT as long as TM+TE", "MT for the wall-clock of TM+TE", lasts=("TM+TE", "time")),
    Method("MT FLOPs of TM+TE", "MT for the FLOPs of TM+TE", lasts=("TM+TE", "FLOPs")),
    Method("TM+TE random", "TM+TE in random blocks", by_conflict(modulation=True, expansion=True, select="random")),
    Method(
        "TM+TE random, same cost",
        "TM+TE in random blocks, streams parting where they do by conflict",
        at_random_behind_the_same_block,
    ),
    Method(
        "TM+TE reversed",
        "TM+TE where conflict is least",
        by_conflict(modulation=True, expansion=True, select="reversed"),
    ),
    Method(
        "TM+TE swapped",
        "modulators by null conflict, tokens by range conflict",
        by_conflict(modulation=True, expansion=True, select="swapped"),
    ),
    Method("TM+TE all", "TM+TE in every block", by_conflict(modulation=True, expansion=True, fraction=1.0)),
    Method("TM+TE last", "TM+TE in the last blocks", last_blocks(None, modulation=True, expansion=True)),
    Method("TM last block", "modulators in the last block", last_blocks(1, modulation=True)),
    Method("Adapt by conflict", "rank-4 updates by range conflict", by_conflict(rank=4)),
    Method(
        "TM+TE+Adapt",
        "TM+TE, and rank-4 updates where modulators are",
        by_conflict(modulation=True, expansion=True, rank=4),
    ),
    Method("Adapt last half", "rank-4 updates in the last half", last_blocks(None, rank=4)),
    Method("Adapt last 2", "rank-4 updates in the last two blocks", last_blocks(2, rank=4)),
    Method("Adapt last block", "rank-4 updates in the last block", last_blocks(1, rank=4)),
    Method("Adapt r1 last block", "rank-1 updates in the last block", last_blocks(1, rank=1)),
    Method("Adapt r8 last block", "rank-8 updates in the last block", last_blocks(1, rank=8)),
    Method(
        "Adapt MLP r12 last block",
        "rank-12 updates in the MLP of the last block",
        last_blocks(1, rank=12, layers=r"mlp\..*"),
    ),
    Method("Adapt r16 last block", "rank-16 updates in the last block", last_blocks(1, rank=16)),
    Method("Adapt within 1.5 x", "rank-4 updates within 1.5 times MT's inference", within_cost(1.5)),
    Method(
        "Adapt within 1.5 x, other tasks",
        "the same plan with its tasks exchanged at random",
        other_tasks(within_cost(1.5)),
    ),
    Method("Adapt within 2 x", "rank-4 updates within 2 times MT's inference", within_cost(2.0)),
    Method(
        "TM+Adapt last block",
        "modulators and rank-4 updates in the last block",
        last_blocks(1, modulation=True, rank=4),
    ),
    Method(
        "final affine",
        "a scale and a shift per task and channel behind the trunk",
        change=final_affine,
        rate="insert_rate",
    ),
    Method("own last block", "a copy of the last block per task", change=own_blocks(1)),
    Method(
        "own last block, rate 3",
        "a copy of the last block per task, at three times the trunk's rate",
        change=own_blocks(1),
        rate="low_rank_rate",
    ),
    Method(
        "own last MLP, rate 3",
        "a copy of the last block's MLP per task, where streams part, at three times the trunk's rate",
        from_the_mlp_on(1),
    ),
    Method("Adapt r12 last MLP", "rank-12 updates in the last block's MLP, where streams part", from_the_mlp_on(1, 12)),
    Method("own last half", "copies of the last half of the blocks per task", change=own_blocks(None)),
    Method(
        "LoRA per task, last block",
        "peft's LoRA of rank 4 in the last block, a pass per task",
        change=lora_in_the_last_block,
        rate="low_rank_rate",
    ),
    Method("Recon", "own copies of the layers whose parameter gradients conflict most", change=recon, counted=COUNTED),
    Method(
        "MT wider, as TM+TE",
        "MLPs wider by as many parameters as TM+TE adds",
        shape=wider(lambda p, depth: 12 * p * ((depth + 1) // 2)),
    ),
    Method(
        "MT wider, as Adapt last block",
        "MLPs wider by as many parameters as Adapt last block adds",
        shape=wider(lambda p, depth: 256 * p),
    ),
    Method(
        "MT wider, as own last block",
        "MLPs wider by as many parameters as own last block adds",
        shape=wider(lambda p, depth: 3 * (12 * p**2 + 13 * p)),
    ),
    Method("PCGrad", "gradients projected off those they conflict with", balance=drawing(baselines.pcgrad)),
    Method("CAGrad", "the worst task's gain near the mean gradient", balance=by(baselines.cagrad)),
    Method("MGDA", "the shortest gradient of the convex hull", balance=by(baselines.mgda)),
    Method("IMTL-G", "equal projections onto all tasks' gradients", balance=by(baselines.imtl_g)),
    Method("Nash-MTL", "the gradients' bargaining solution", balance=by(baselines.nash_mtl)),
    Method("Aligned-MTL", "gradients made orthogonal and alike", balance=by(baselines.aligned_mtl)),
    Method("GradDrop", "signs drawn per element", balance=drawing(baselines.graddrop)),
    Method("FairGrad", "alpha-fair gradients", balance=by(baselines.fairgrad)),
    Method("UPGrad", "gradients projected onto the dual cone", balance=by(baselines.upgrad)),
    Method(
        "MT, even gradients", "losses weighted so that token gradients are equally large at the start", weights="even"
    ),
    Method("UW", "losses weighted by learned uncertainty", balance=weighing(baselines.UW)),
    Method("DWA", "losses weighted by how fast they fall", balance=dwa),
    Method("FAMO", "losses weighted so that all fall alike", balance=weighing(baselines.FAMO)),
    Method(
        "TM+TE, UW",
        "the paper's method, losses weighted by learned uncertainty",
        by_conflict(modulation=True, expansion=True),
        balance=weighing(baselines.UW),
    ),
    Method(
        "MT as long as Adapt last block",
        "MT for the wall-clock of Adapt last block",
        lasts=("Adapt last block", "time"),
    ),
    Method(
        "MT as long as Adapt within 1.5 x",
        "MT for the wall-clock of Adapt within 1.5 x",
        lasts=("Adapt within 1.5 x", "time"),
    ),
    Method(
        "MT as long as Adapt r8 last block",
        "MT for the wall-clock of Adapt r8 last block",
        lasts=("Adapt r8 last block", "time"),
    ),
    Method(
        "MT as long as Adapt r12 last MLP",
        "MT for the wall-clock of Adapt r12 last MLP",
        lasts=("Adapt r12 last MLP", "time"),
    ),
    Method("MT as long as Adapt last 2", "MT for the wall-clock of Adapt last 2", lasts=("Adapt last 2", "time")),
)
_TUNED = (
    "MT",
    "MT 2x",
    "TM",
    "TM+TE",
    "TM+TE random, same cost",
    "TM+TE all",
    "Adapt last half",
    "Adapt last 2",
    "Adapt last block",
    "Adapt r8 last block",
    "Adapt MLP r12 last block",
    "own last block",
    "own last block, rate 3",
    "own last MLP, rate 3",
    "Adapt r12 last MLP",
    "MT wider, as own last block",
    "MT as long as TM+TE",
    "MT as long as Adapt r8 last block",
    "MT as long as Adapt r12 last MLP",
)
_EVEN = (
    "TM+TE",
    "Adapt r8 last block",
    "Adapt MLP r12 last block",
    "own last block",
    "own last block, rate 3",
    "own last MLP, rate 3",
    "Adapt r12 last MLP",
    "MT as long as Adapt r8 last block",
    "MT as long as Adapt r12 last MLP",
)


def _weighted(
    names: tuple[str, ...], suffix: str, says: str, weights: Mapping[str, Mapping[str, float]] | Literal["even"]
) -> tuple[Method, ...]:
    """Some of the methods, their losses weighted otherwise."""
    return tuple(
        replace(method, name=f"{method.name}, {suffix}", says=f"{method.says}; {says}", weights=weights)
        for method in _WITH_WEIGHTS_IN_COMMON_USE
        if method.name in names
    )


METHODS = (
    *_WITH_WEIGHTS_IN_COMMON_USE,
    *_weighted(
        _EVEN, "even gradients", "losses weighted so that token gradients are equally large at the start", "even"
    ),
    *_weighted(_TUNED, "tuned weights", "weights of the losses chosen for MT on the validation split", TUNED_WEIGHTS),
)
"""In the order of every table."""
