"""Branching: one trunk up to a depth, and for each task its own copies of the blocks behind it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dtme.trunk.blocks import find_blocks
from experiments.baselines.layer_copies import OwnCopies


def branch(model: nn.Module, tasks: Sequence[str], count: int) -> OwnCopies:
    """A model whose last blocks each task has for itself: `D - count` blocks run once, `count` of them once per task.

    Layers behind the blocks, such as a final norm, run once per task and keep shared weights.

    Args:
        model: Given its inputs it returns a dictionary by task, from the heads in a `ModuleDict`. It becomes a child.
        tasks: Its tasks.
        count: How many blocks branch, counted from the end.

    Raises:
        ValueError: The model has no blocks, or not so many.

    Example:
        >>> trunk = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 3, enable_nested_tensor=False)
        >>> model = nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleDict({"a": nn.Linear(8, 1), "b": nn.Linear(8, 1)})})
        >>> branch(model, ("a", "b"), 2).names
        ('trunk.layers.1', 'trunk.layers.2')
    """
    blocks = list(find_blocks(model))
    if not 1 <= count <= len(blocks):
        raise ValueError(f"count={count}: give 1 to {len(blocks)}, for this model has {len(blocks)} blocks.")
    return OwnCopies(model, tasks, blocks[-count:])
