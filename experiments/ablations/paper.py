"""The ablations that the paper makes."""

from __future__ import annotations

from typing import Any

from experiments.ablations.ablation import Ablation, of_table, varied
from experiments.dense.branch_point import BranchPoint
from experiments.dense.methods import watched
from experiments.methods.placements import by_conflict


def _paper(**options: Any) -> dict[str, Any]:
    return {"plan": by_conflict(modulation=True, expansion=True, **options)}


_SHARES = {"1/6": 1 / 6, "1/3": 1 / 3, "1/2": 0.5, "2/3": 2 / 3, "5/6": 5 / 6}
FRACTIONS = varied("TM+TE", tuple(_SHARES), "1/2", lambda value: _paper(fraction=_SHARES[value]))
MOMENTS = {"0 %": 0.0, "25 %": 0.25, "50 %": 0.5, "75 %": 0.75}
_READING = {"1/16 x": 1 / 16, "1/4 x": 1 / 4, "1 x": 1.0, "4 x": 4.0}

OF_THE_PAPER = (
    Ablation(
        "fraction",
        "share of the blocks with modulators, and with task tokens (Fig. 6)",
        "share of the blocks",
        (
            *FRACTIONS,
            ("all", of_table("TM+TE all")[0]),
        ),
    ),
    Ablation(
        "variance-ratio",
        "energy in the range space over that in the null space (Fig. 5)",
        "variance ratio r",
        varied(
            "TM+TE",
            ("r 1", "r 10", "r 100", "r 500", "r 1000"),
            "r 100",
            lambda value: {"branch": BranchPoint(variance_ratio=float(value[2:]))},
        ),
    ),
    Ablation(
        "moment",
        "when the plan of TM+TE is made and applied (Fig. 3)",
        "share of the steps before",
        varied("TM+TE", tuple(MOMENTS), "0 %", lambda value: {"branch": BranchPoint(MOMENTS[value])}),
    ),
    Ablation(
        "analysis",
        "data that the analysis of TM+TE reads, and its cost (Tab. 6)",
        "batches read",
        varied("TM+TE", tuple(_READING), "1 x", lambda value: {"branch": BranchPoint(reading=_READING[value])}),
        price="analysis",
    ),
    Ablation(
        "modulator",
        "affine or batch-norm modulators (Tab. 11)",
        "modulator",
        (
            *varied(
                "TM",
                ("affine", "batch norm"),
                "affine",
                lambda value: {"plan": by_conflict(modulation=True, modulator="batchnorm")},
            ),
            *varied(
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
                varied(base, ("trained", "frozen"), "trained", lambda value: {"settings": {"frozen_trunk": True}})
            )
        ),
    ),
    Ablation(
        "placement",
        "where modulators and task tokens go (Tab. 2, Tab. 13)",
        "blocks",
        tuple(
            (method.name.removeprefix("TM+TE").strip() or "conflict", method)
            for method in of_table(
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
        "conflict",
        "conflict before and after training, in either space (Tab. 14)",
        "method",
        tuple((method.name, method) for method in of_table("MT", "TM", "TE", "TM+TE", "Adapt last block")),
        figure="conflict",
    ),
    Ablation(
        "cosines",
        "cosines between the tasks' gradients by the parameters they share (Fig. 4)",
        "method",
        tuple((method.name, watched(method)) for method in of_table("MT", "TM+TE", "Adapt last block")),
        figure="cosines",
    ),
)
"""By figure, then by table."""
