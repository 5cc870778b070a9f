"""The linear layers of a block with their low-rank updates: what their hooks add to their outputs."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module

from dtme.insert import Insert, layer_key
from dtme.lanes import rows_of
from dtme.low_rank import LowRank, low_rank_update

_EXPERT = re.compile(r"(^|-)experts?-")
"""Keys of layers that belong to one of several experts."""
_ALL = slice(None)
"""All output channels of a linear layer."""


def adapt(insert: Insert, layer: str, linear: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """The forward hook of a linear layer in a block that is adapted."""
    unwatched = len(linear._forward_hooks) == 1 and not module._global_forward_hooks  # no other hook may have kept it
    fresh = type(linear) is nn.Linear and "forward" not in vars(linear) and unwatched
    plain = linear if fresh and isinstance(linear, nn.Linear) else None
    return _adapted(insert, layer, args[0], output, _ALL, insert.passage.batch_dim, fresh=fresh, linear=plain)


def adapt_projection(
    insert: Insert, prefix: str, batch_dim: int, name: str, inputs: Tensor, outputs: Tensor, channels: slice
) -> Tensor:
    """What an attention in a block that is adapted calls for each of its projections."""
    return _adapted(insert, layer_key(prefix + name), inputs, outputs, channels, batch_dim, fresh=True)


def check_all_ran(insert: Insert) -> None:
    """Refuse a pass in which an adapted layer was not called.

    Raises:
        ValueError: There is one; the message names it.
    """
    idle = insert.passage.idle
    if idle:
        raise ValueError(
            f"adapt: block {insert.name!r} uses the weight of its layer {min(idle)!r} without calling the layer, so that "
            "an update would do nothing. Leave it out: choose the layers by adapt_layers, a regular expression over their "
            "names."
        )


def _adapted(
    insert: Insert,
    layer: str,
    inputs: Tensor,
    outputs: Tensor,
    channels: slice,
    batch_dim: int,
    *,
    fresh: bool,
    linear: nn.Linear | None = None,
) -> Tensor:
    """Outputs of a layer, or some channels of them, with the update of each lane's task; written to where `fresh`."""
    insert.passage.idle.discard(layer)
    places = insert.passage.adapting
    if layer not in insert.low_rank or (isinstance(places, list) and max(places, default=-1) < 0):
        return outputs
    if places is None:
        raise ValueError(
            f"adapt: activation checkpointing recomputes the forward of block {insert.name!r} without its hooks, and the block "
            f"ran in two parts, with task tokens for {insert.expanded} and without, which cannot be told apart then. Plan task "
            "tokens there for all tasks, or updates elsewhere, or turn checkpointing off."
        )
    if inputs.ndim < 3 and batch_dim != 0:
        raise ValueError(
            f"adapt: layer {layer!r} of block {insert.name!r} takes rows of shape {tuple(inputs.shape)}, positions before "
            "samples, where streams cannot be told apart. Use batch_first=True, or leave it out with adapt_layers."
        )
    if inputs.ndim < 3 and _EXPERT.search(layer):
        raise ValueError(
            f"adapt: layer {layer!r} of block {insert.name!r} belongs to one of several experts, and takes the tokens "
            f"{tuple(inputs.shape)} that are sent to it, whichever task they serve. Leave it out: choose the layers by "
            "adapt_layers, a regular expression over their names."
        )
    rows = inputs.shape[batch_dim]
    if rows % (len(places) * insert.passage.lane_samples):
        raise ValueError(
            f"adapt: layer {layer!r} of block {insert.name!r} is given {tuple(inputs.shape)}, shared by all streams, and so "
            "cannot be adapted per task. Choose the layers by adapt_layers, a regular expression over their names."
        )
    own = insert.low_rank[layer]
    assert isinstance(own, LowRank)
    down, up = rows_of(own.down, places, 0.0), rows_of(own.up, places, 0.0)
    return low_rank_update(inputs, outputs, down, up[:, channels], batch_dim, fresh=fresh, linear=linear)
