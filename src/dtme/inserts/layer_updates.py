"""The linear layers of a block with their low-rank updates: what hooks of the layers add to their outputs.

A layer is updated while the block that the plan adapts runs, and at no other time: another block may hold it, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module
from torch.utils.hooks import RemovableHandle

from dtme._tracing import runs_as_written
from dtme.inserts.call_state import Calls
from dtme.inserts.host import Host
from dtme.inserts.low_rank import LowRank, is_watched_when_called, low_rank_update
from dtme.streams.lanes import rows_of
from dtme.trunk.attention import Opened, open_attention
from dtme.trunk.linear_layers import Linear, linear_layers

_ALL = slice(None)
"""All output channels of a linear layer."""
_LEAVE_OUT = "Leave it out: choose the layers by adapt_layers, a regular expression over their names."


@dataclass(frozen=True)
class UpdatedLayer:
    """A layer of a block, and what its update is made of.

    Attributes:
        name: In the block.
        host: Facts about the block.
        calls: Of the block.
        update: The update.
        shared: Whether another block holds the layer, too.
    """

    name: str
    host: Host
    calls: Calls
    update: LowRank
    shared: bool


def layer_key(layer: str) -> str:
    """The name of a linear layer as a key of a `ModuleDict`, which may hold no dot."""
    return layer.replace(".", "-")


def adapted_layers(name: str, block: nn.Module, pattern: str | None, copied: Iterator[str]) -> dict[str, Linear]:
    """The linear layers of a block that a plan adapts.

    Args:
        name: Of the block.
        block: The block.
        pattern: The plan's `adapt_layers`.
        copied: Blocks and parts of blocks of which tasks have copies.

    Raises:
        ValueError: There is none, or tasks have copies of one.
    """
    try:
        layers = linear_layers(block, pattern)
    except ValueError as why:
        raise ValueError(f"plan.adapt: in block {name!r}, {why}") from None
    if not layers:
        raise ValueError(
            f"plan.adapt: block {name!r} has no linear layer to adapt that matches adapt_layers={pattern!r}; "
            f"it has {list(linear_layers(block)) or 'none'}."
        )
    for part in copied:
        inside = part.removeprefix(f"{name}.")
        taken = [layer for layer in layers if f"{layer}.".startswith(f"{inside}.")]
        if part != inside and taken:
            raise ValueError(
                f"plan.adapt: layer {taken[0]!r} of block {name!r} lies in {part!r}, of which tasks have copies. {_LEAVE_OUT}"
            )
    return layers


def update_layers(
    host: Host, block: nn.Module, calls: Calls, low_rank: nn.ModuleDict, shared: set[nn.Module], pattern: str | None
) -> Iterator[RemovableHandle | Opened]:
    """Let the linear layers of a block be updated while it runs; one handle for each attention or layer."""
    attentions: set[nn.Module] = set()
    for layer, linear in linear_layers(block, pattern).items():
        update = low_rank[layer_key(layer)]
        assert isinstance(update, LowRank)
        own = UpdatedLayer(layer, host, calls, update, linear.module in shared)
        if not isinstance(linear.module, nn.MultiheadAttention):
            yield linear.module.register_forward_hook(partial(_update_output, own))
        elif linear.module not in attentions:
            attentions.add(linear.module)
            prefix = layer[: layer.rfind(".") + 1]
            updates = {
                name.removeprefix(prefix): UpdatedLayer(name, host, calls, low_rank[layer_key(name)], own.shared)  # pyright: ignore[reportArgumentType]
                for name, other in linear_layers(block, pattern).items()
                if other.module is linear.module
            }
            yield open_attention(linear.module, partial(_update_projection, updates, 1 - linear.module.batch_first))


def check_all_ran(host: Host, idle: set[str]) -> None:
    """Refuse a pass in which an adapted layer was not called.

    Raises:
        ValueError: There is one; the message names it.
    """
    if idle:
        raise ValueError(
            f"adapt: block {host.name!r} uses the weight of its layer {min(idle)!r} without calling the layer, so that "
            f"an update would do nothing. {_LEAVE_OUT}"
        )


@runs_as_written
def _update_output(own: UpdatedLayer, linear: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """The forward hook of a linear layer."""
    unwatched = len(linear._forward_hooks) == 1 and not module._global_forward_hooks  # no other hook may have kept it
    fresh = type(linear) is nn.Linear and "forward" not in vars(linear) and unwatched
    plain = linear if fresh and isinstance(linear, nn.Linear) else None
    return _updated(own, args[0], output, _ALL, None, fresh=fresh, linear=plain)


@runs_as_written
def _update_projection(
    updates: dict[str, UpdatedLayer], batch: int, name: str, inputs: Tensor, outputs: Tensor, channels: slice
) -> Tensor:
    """What an attention calls for each of its projections."""
    own = updates.get(name)
    return outputs if own is None else _updated(own, inputs, outputs, channels, batch, fresh=True)


def _updated(
    own: UpdatedLayer,
    inputs: Tensor,
    outputs: Tensor,
    channels: slice,
    batch: int | None,
    *,
    fresh: bool,
    linear: nn.Linear | None = None,
) -> Tensor:
    """Outputs of a layer, or some channels of them, with the update of each lane's task; written to where `fresh`."""
    state = own.calls.state if own.shared else own.calls.state_inside
    if state is None:  # another block runs the layer
        return outputs
    state.idle.discard(own.name)
    places = state.adapting
    if isinstance(places, list) and max(places, default=-1) < 0:
        return outputs
    if state.ran_apart and own.calls.state is None:
        raise ValueError(
            f"adapt: activation checkpointing recomputes the forward of block {own.host.name!r} without its hooks, and lanes "
            "of the block ran apart (through copies, or with task tokens that others lack), which cannot be told then. Plan "
            "task tokens there for all tasks, or updates elsewhere, or turn checkpointing off."
        )
    dim = own.host.dims.get(own.name, state.batch if batch is None else batch)
    if dim is None:
        raise ValueError(
            f"adapt: layer {own.name!r} of block {own.host.name!r} takes rows of shape {tuple(inputs.shape)} in which samples "
            "do not lie one after another: they are sent to experts, or cut and turned round, so that streams cannot be told "
            f"apart. {_LEAVE_OUT}"
        )
    if inputs.ndim < 3 and dim != 0:
        raise ValueError(
            f"adapt: layer {own.name!r} of block {own.host.name!r} takes rows of shape {tuple(inputs.shape)}, positions before "
            "samples, where streams cannot be told apart. Use batch_first=True, or leave it out with adapt_layers."
        )
    if inputs.shape[dim] % max(len(places) * state.lane_samples, 1):
        raise ValueError(
            f"adapt: layer {own.name!r} of block {own.host.name!r} is given {tuple(inputs.shape)}, shared by all streams, and so "
            "cannot be adapted per task. Choose the layers by adapt_layers, a regular expression over their names."
        )
    if not len(places):
        return outputs
    down, up = own.update() if is_watched_when_called(own.update) else (own.update.down, own.update.up)
    down, up = rows_of(down, places, 0.0), rows_of(up, places, 0.0)
    return low_rank_update(inputs, outputs, down, up[:, channels], dim, fresh=fresh, linear=linear)
