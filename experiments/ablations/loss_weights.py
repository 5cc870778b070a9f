"""How much of the gap between one model and many is weights of the losses, which cost nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.ablations.ablation import Ablation, of_table
from experiments.dense.experiment import LOSS_WEIGHTS
from experiments.dense.methods import Method


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


OF_LOSS_WEIGHTS = (
    Ablation(
        "loss-weights",
        "weights of the losses of plain training, one task's changed at a time",
        "weights",
        (
            ("as they are", of_table("MT")[0]),
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
)
