"""Ablations: one thing varied, everything else as in the table; each is one command and one figure."""

from __future__ import annotations

from experiments.ablations.ablation import Ablation
from experiments.ablations.copies import OF_COPIES
from experiments.ablations.inserts import OF_INSERTS
from experiments.ablations.loss_weights import OF_LOSS_WEIGHTS
from experiments.ablations.paper import OF_THE_PAPER

ABLATIONS = (*OF_THE_PAPER, *OF_INSERTS, *OF_COPIES, *OF_LOSS_WEIGHTS)


def ablation_of(name: str) -> Ablation:
    """The ablation of that name.

    Raises:
        ValueError: There is none; the message lists them.
    """
    for ablation in ABLATIONS:
        if ablation.name == name:
            return ablation
    raise ValueError(f"ablation={name!r}: choose from {', '.join(ablation.name for ablation in ABLATIONS)}.")


__all__ = ["ABLATIONS", "Ablation", "ablation_of"]
