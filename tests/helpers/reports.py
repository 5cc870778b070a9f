"""Reports with rates that a test chooses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import dtme
from dtme._shapes import Float

TASKS = ("a", "b", "c")


def report_of(
    range_rate: Float[Tensor, "d k k"], null_rate: Float[Tensor, "d k k"], **fields: Any
) -> dtme.ConflictReport:
    depth, tasks = range_rate.shape[:2]
    halfwidth = torch.full_like(range_rate, 0.05) * (1 - torch.eye(tasks, dtype=range_rate.dtype))
    given = {
        "tasks": TASKS[:tasks],
        "blocks": tuple(f"blocks.{d}" for d in range(depth)),
        "widths": (8,) * depth,
        "range_rank": (3,) * depth,
        "range_rate": range_rate,
        "null_rate": null_rate,
        "range_halfwidth": halfwidth,
        "null_halfwidth": halfwidth.clone(),
        "samples": 9,
        "pairing": tuple(tuple("" if i == j else "shared" for j in range(tasks)) for i in range(tasks)),
        "zero_share": (0.25,) * depth,
        "variance_ratio": 100.0,
        "level": 0.95,
    }
    return dtme.ConflictReport(**{**given, **fields})


def rates(scores: list[float], tasks: int = 3) -> Float[Tensor, "d k k"]:
    """The same rate for every pair of a block."""
    off = 1 - torch.eye(tasks, dtype=torch.float64)
    return torch.tensor(scores, dtype=torch.float64).view(-1, 1, 1) * off
