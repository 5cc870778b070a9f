"""TorchJD's engine of Gramians (`torchjd.autogram`) on streams: what it puts behind a module is put behind each stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dtme._pytree import map_tensors
from dtme.streams.groups import Groups


def is_of_engine(node: Any) -> bool:
    """Whether it was the engine that put a node into a graph, behind a module."""
    return type(node).__name__ == "AutogramNodeBackward"


def watch_each(
    node: Any, output: Tensor, groups: Groups, stream_of: Callable[[Tensor, str], Tensor]
) -> tuple[Tensor, ...]:
    """What a module made of each stream, watched by the engine as if the module had been called once for each.

    The engine sums the Jacobians of all calls of a module, which is what streams need.

    Args:
        node: What the engine put behind the module, in the graph of the one tensor.
        output: The one tensor, as it comes out of the node.
        groups: Which tasks each stream serves.
        stream_of: Gives one stream.
    """
    with torch._C.DisableTorchFunctionSubclass():
        place = output.output_nr
    known: dict[int, tuple[Tensor, ...]] = vars(node).setdefault("dtme_watched", {})
    if place in known:
        return known[place]
    if not torch.is_grad_enabled():
        return tuple(stream_of(node.rg_outputs[place], group[0]) for group in groups)
    watched: list[Tensor] = []
    for group in groups:

        def own(tensor: Tensor, task: str = group[0]) -> Tensor:
            return stream_of(tensor, task)

        given = map_tensors((node.args, node.kwargs), own)
        watched += type(node)._forward_cls.apply(
            node.gramian_accumulation_phase,
            node.gramian_computer,
            *given,
            node.gramian_accumulator,
            own(node.rg_outputs[place]),
        )
    for _ in range(len(watched) - (not known)):  # the engine has counted one call of the module
        node.gramian_computer.track_forward_call()
    known[place] = tuple(watched)
    return known[place]
