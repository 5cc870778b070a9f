"""Ablations: one thing varied, everything else as in the table; each is one command and one figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dtme.bench.branch_point import BranchPoint
from dtme.bench.experiment import LOSS_WEIGHTS
from dtme.bench.methods import METHODS, Method, watched
from dtme.bench.placements import after_norm, by_conflict, last_blocks, one_block, within_cost


@dataclass(frozen=True)
class Ablation:
    """One thing varied.

    Attributes:
        name: As the command line calls it.
        says: What is varied, and which table or figure of the paper does the same; the title of the figure.
        axis: What the values are.
        arms: Value and method.
        figure: What is drawn: each arm's gain over MT, its conflict before and after, or the cosines of its gradients.
        price: What is shown beside a gain: a step as a multiple of MT's, or the analysis as a share of MT's training.
    """

    name: str
    says: str
    axis: str
    arms: tuple[tuple[str, Method], ...]
    figure: Literal["gains", "conflict", "cosines"] = "gains"
    price: Literal["step", "analysis"] = "step"


def _of_table(*names: str) -> tuple[Method, ...]:
    return tuple(next(method for method in METHODS if method.name == name) for name in names)


def _varied(
    base: str, values: Sequence[str], own: str, change: Callable[[str], dict[str, Any]]
) -> tuple[tuple[str, Method], ...]:
    """A method of the table, and what it is under other values than the table's own."""
    (method,) = _of_table(base)
    return tuple(
        (value, method if value == own else replace(method, name=f"{base}, {value}", **change(value)))
        for value in values
    )


def _setting(base: str, field: str, values: Sequence[str], own: str, word: str) -> tuple[tuple[str, Method], ...]:
    """A method of the table under several values of one setting of the recipe."""
    varied = _varied(base, values, own, lambda value: {"settings": {field: float(value)}})
    return tuple(
        (value, method if value == own else replace(method, name=f"{base}, {word} {value}")) for value, method in varied
    )


def _paper(**options: Any) -> dict[str, Any]:
    return {"plan": by_conflict(modulation=True, expansion=True, **options)}


def _reweighted(place: int, factor: float) -> dict[str, dict[str, float]]:
    """Per suite its weights, that of one task changed."""
    return {
        suite: {task: weight * (factor if task == list(weights)[place] else 1.0) for task, weight in weights.items()}
        for suite, weights in LOSS_WEIGHTS.items()
    }


def _together(suite: str, candidates: Sequence[Mapping[str, float]]) -> tuple[tuple[str, Method], ...]:
    """Plain training on one suite with several weights changed at once."""
    arms = []
    for factors in candidates:
        label = ", ".join(f"{task} x {f:g}" if f > 1 else f"{task} / {1 / f:g}" for task, f in factors.items())
        weights = {task: weight * factors.get(task, 1.0) for task, weight in LOSS_WEIGHTS[suite].items()}
        arms.append((label, Method(f"MT, {label}", f"plain training, {label}", weights={suite: weights})))
    return tuple(arms)


_LAST_HALF = "in the last half of the blocks"
_TM_LAST_HALF = Method("TM last half", f"modulators {_LAST_HALF}", last_blocks(None, modulation=True))
_SHARES = {"1/6": 1 / 6, "1/3": 1 / 3, "1/2": 0.5, "2/3": 2 / 3, "5/6": 5 / 6}
_FRACTIONS = _varied("TM+TE", tuple(_SHARES), "1/2", lambda value: _paper(fraction=_SHARES[value]))
_FIRST_ROUND = dict(_FRACTIONS)["1/3"]
_READING = {"1/16 x": 1 / 16, "1/4 x": 1 / 4, "1 x": 1.0, "4 x": 4.0}
_MOMENTS = {"0 %": 0.0, "25 %": 0.25, "50 %": 0.5, "75 %": 0.75}

ABLATIONS = (
    Ablation(
        "fraction",
        "share of the blocks with modulators, and with task tokens (Fig. 6)",
        "share of the blocks",
        (
            *_FRACTIONS,
            ("all", _of_table("TM+TE all")[0]),
        ),
    ),
    Ablation(
        "variance-ratio",
        "energy in the range space over that in the null space (Fig. 5)",
        "variance ratio r",
        _varied(
            "TM+TE",
            ("r 1", "r 10", "r 100", "r 500", "r 1000"),
            "r 100",
            lambda value: {"branch": BranchPoint(variance_ratio=float(value[2:]))},
        ),
    ),
    Ablation(
        "analysis",
        "data that the analysis of TM+TE reads, and its cost (Tab. 6)",
        "batches read",
        _varied("TM+TE", tuple(_READING), "1 x", lambda value: {"branch": BranchPoint(reading=_READING[value])}),
        price="analysis",
    ),
    Ablation(
        "moment",
        "when the plan of TM+TE is made and applied (Fig. 3)",
        "share of the steps before",
        _varied("TM+TE", tuple(_MOMENTS), "0 %", lambda value: {"branch": BranchPoint(_MOMENTS[value])}),
    ),
    Ablation(
        "moment-adapt",
        "when rank-4 updates are put into the last block",
        "share of the steps before",
        _varied("Adapt last block", tuple(_MOMENTS), "0 %", lambda value: {"branch": BranchPoint(_MOMENTS[value])}),
    ),
    Ablation(
        "rounds",
        "TM+TE planned at once, or a third of its blocks at half time",
        "planned",
        (
            ("at once", _of_table("TM+TE")[0]),
            ("the first round alone", _FIRST_ROUND),
            (
                "in two rounds",
                Method(
                    "TM+TE in two rounds",
                    "TM+TE in a third of the blocks, joined at half time by those that conflict most then",
                    by_conflict(modulation=True, expansion=True),
                    branch=BranchPoint(0.5, of=_FIRST_ROUND.name),
                ),
            ),
        ),
    ),
    Ablation(
        "tokens",
        "task tokens per task and block",
        "tokens",
        _varied(
            "TE", ("1", "2", "4", "8"), "1", lambda value: {"plan": by_conflict(expansion=True, tokens=int(value))}
        ),
    ),
    Ablation(
        "modulator",
        "affine or batch-norm modulators (Tab. 11)",
        "modulator",
        (
            *_varied(
                "TM",
                ("affine", "batch norm"),
                "affine",
                lambda value: {"plan": by_conflict(modulation=True, modulator="batchnorm")},
            ),
            *_varied(
                "TM+TE",
                ("affine, tokens", "batch norm, tokens"),
                "affine, tokens",
                lambda value: _paper(modulator="batchnorm"),
            ),
        ),
    ),
    Ablation(
        "trunk",
        "trunk trained on or frozen (Tab. 12)",
        "trunk",
        tuple(
            (f"{base}{', frozen' if frozen else ''}", method)
            for base in ("MT", "TM+TE", "Adapt last block")
            for frozen, (_, method) in enumerate(
                _varied(base, ("trained", "frozen"), "trained", lambda value: {"settings": {"frozen_trunk": True}})
            )
        ),
    ),
    Ablation(
        "placement",
        "where modulators and task tokens go (Tab. 2, Tab. 13)",
        "blocks",
        tuple(
            (method.name.removeprefix("TM+TE").strip() or "conflict", method)
            for method in _of_table(
                "TM+TE",
                "TM+TE random",
                "TM+TE random, same cost",
                "TM+TE reversed",
                "TM+TE swapped",
                "TM+TE last",
                "TM+TE all",
            )
        ),
    ),
    Ablation(
        "loss-weights",
        "weights of the losses of plain training, one task's changed at a time",
        "weights",
        (
            ("as they are", _of_table("MT")[0]),
            *(
                (label, Method(f"MT, {label}", f"plain training, {label}", weights=_reweighted(place, factor)))
                for place in range(4)
                for label, factor in ((f"task {place + 1} x 3", 3.0), (f"task {place + 1} / 3", 1 / 3))
            ),
        ),
    ),
    Ablation(
        "weights-scenes",
        "weights of the losses of plain training, those changed together that helped one at a time",
        "weights",
        _together(
            "scenes",
            (
                {"semseg": 3.0, "edges": 1 / 3},
                {"semseg": 3.0, "normals": 3.0, "edges": 1 / 3},
                {"semseg": 9.0, "edges": 1 / 3},
                {"semseg": 3.0, "edges": 1 / 9},
                {"semseg": 3.0, "normals": 3.0, "edges": 1 / 9},
                {"edges": 1 / 9},
            ),
        ),
    ),
    Ablation(
        "weights-nuclei",
        "weights of the losses of plain training, those changed together that helped one at a time",
        "weights",
        _together(
            "nuclei",
            (
                {"boundary": 1 / 3, "horizontal": 3.0, "vertical": 3.0},
                {"boundary": 1 / 9},
                {"boundary": 1 / 9, "horizontal": 3.0, "vertical": 3.0},
                {"boundary": 1 / 27},
                {"mask": 3.0, "boundary": 1 / 3, "horizontal": 3.0, "vertical": 3.0},
            ),
        ),
    ),
    Ablation(
        "insert-rate",
        "learning rate of modulators and task tokens",
        "multiple of the trunk's",
        _setting("TM+TE", "insert_rate", ("1", "3", "10", "30", "100"), "10", "rate"),
    ),
    Ablation(
        "low-rank-rate",
        "learning rate of rank-4 updates in the last block",
        "multiple of the trunk's",
        _setting("Adapt last block", "low_rank_rate", ("0.3", "1", "3", "10"), "3", "rate"),
    ),
    Ablation(
        "insert-decay",
        "weight decay of modulators and task tokens",
        "decay",
        _setting("TM+TE", "insert_decay", ("0", "0.02", "0.2"), "0", "decay"),
    ),
    Ablation(
        "insert-warmup",
        "steps over which the learning rate of modulators and task tokens rises",
        "steps",
        _setting("TM+TE", "insert_warmup", ("0", "100", "300"), "0", "warm-up"),
    ),
    Ablation(
        "position",
        f"where modulators sit {_LAST_HALF}",
        "position",
        (
            ("entry", _TM_LAST_HALF),
            (
                "behind the norms",
                Method("TM behind norms", f"modulators behind the norms {_LAST_HALF}", after_norm(entry=False)),
            ),
            (
                "both",
                Method(
                    "TM entry and norms",
                    f"modulators at the entry and behind the norms {_LAST_HALF}",
                    after_norm(entry=True),
                ),
            ),
        ),
    ),
    Ablation(
        "rank",
        "rank of the updates in the last block",
        "rank",
        (
            *zip(
                ("1", "4", "8", "16"),
                _of_table("Adapt r1 last block", "Adapt last block", "Adapt r8 last block", "Adapt r16 last block"),
                strict=True,
            ),
        ),
    ),
    Ablation(
        "layers",
        "which linear layers of the last block have rank-4 updates",
        "layers",
        _varied(
            "Adapt last block",
            ("attention", "MLP", "all"),
            "all",
            lambda value: {"plan": last_blocks(1, rank=4, layers=r"attn\..*" if value == "attention" else r"mlp\..*")},
        ),
    ),
    Ablation(
        "contents",
        f"what the streams carry {_LAST_HALF}",
        "contents",
        (
            ("TM", _TM_LAST_HALF),
            ("TE", Method("TE last half", f"task tokens {_LAST_HALF}", last_blocks(None, expansion=True))),
            ("TM+TE", _of_table("TM+TE last")[0]),
            ("Adapt", _of_table("Adapt last half")[0]),
            (
                "all three",
                Method(
                    "TM+TE+Adapt last half",
                    f"all three {_LAST_HALF}",
                    last_blocks(None, modulation=True, expansion=True, rank=4),
                ),
            ),
            ("own blocks", _of_table("own last half")[0]),
        ),
    ),
    Ablation(
        "conflict",
        "conflict before and after training, in either space (Tab. 14)",
        "method",
        tuple((method.name, method) for method in _of_table("MT", "TM", "TE", "TM+TE", "Adapt last block")),
        figure="conflict",
    ),
    Ablation(
        "cosines",
        "cosines between the tasks' gradients by the parameters they share (Fig. 4)",
        "method",
        tuple((method.name, watched(method)) for method in _of_table("MT", "TM+TE", "Adapt last block")),
        figure="cosines",
    ),
    *(
        Ablation(
            f"block-{word}",
            f"{says} in one block alone",
            "block",
            tuple(
                (
                    str(place),
                    Method(
                        f"{word} block {place}", f"{says} in block {place} alone", one_block(place, modulation, rank)
                    ),
                )
                for place in range(6)
            ),
        )
        for word, says, modulation, rank in (("adapt", "rank-4 updates", False, 4), ("tm", "modulators", True, 0))
    ),
    Ablation(
        "budget",
        "rank-4 updates on a budget of inference",
        "times MT's inference",
        tuple(
            (
                value,
                Method(
                    f"Adapt within {value} x",
                    f"rank-4 updates within {value} times MT's inference",
                    within_cost(float(value)),
                ),
            )
            if value in ("1.25", "3")
            else (value, _of_table(f"Adapt within {value} x")[0])
            for value in ("1.25", "1.5", "2", "3")
        ),
    ),
)
"""In the order of the paper, then ours."""


def ablation_of(name: str) -> Ablation:
    """The ablation of that name.

    Raises:
        ValueError: There is none; the message lists them.
    """
    for ablation in ABLATIONS:
        if ablation.name == name:
            return ablation
    raise ValueError(f"ablation={name!r}: choose from {', '.join(ablation.name for ablation in ABLATIONS)}.")
