"""Ablations: one thing varied, everything else as in the table; each is one command and one figure."""

from __future__ import annotations

from dtme.bench.ablations.of_copies import OF_COPIES
from dtme.bench.ablations.of_inserts import OF_INSERTS
from dtme.bench.ablations.of_loss_weights import OF_LOSS_WEIGHTS
from dtme.bench.ablations.of_the_paper import OF_THE_PAPER
from dtme.bench.ablations.varied import Ablation

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
