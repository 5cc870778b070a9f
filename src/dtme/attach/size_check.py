"""What a plan would add, counted before anything of it is made: a file of a few bytes may ask for all the memory there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from torch import nn

from dtme.inserts.layer_updates import adapted_layers
from dtme.plan.plan import Plan
from dtme.trunk.layout import width_of

MOST_TIMES = 100
"""Times the numbers of a model that a plan may add; a copy of the whole trunk for each of 20 tasks is 20."""
ALWAYS = 2**24
"""Numbers that a plan may always add, however small the model is."""


def check_size(model: nn.Module, plan: Plan, blocks: Mapping[str, nn.Module]) -> None:
    """Refuse a plan that adds out of all proportion to the model.

    Raises:
        ValueError: It does; the message tells what most of it would be.
    """
    own = sum(parameter.numel() for parameter in chain(model.parameters(), model.buffers()))
    most = max(ALWAYS, MOST_TIMES * own)
    counted: dict[str, int] = {}
    for name, kind, numbers in _numbers(plan, blocks):
        counted[kind] = counted.get(kind, 0) + numbers
        if sum(counted.values()) > most:
            raise ValueError(
                f"plan: with the {kind} of block {name!r} it would add {sum(counted.values()):,} numbers or more to a model of "
                f"{own:,}; {most:,} are the most. Most of them are {max(counted, key=counted.__getitem__)}: is the plan of a "
                "file that you trust?"
            )


def _numbers(plan: Plan, blocks: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, int]]:
    for name in plan.blocks:
        block, width = blocks[name], width_of(blocks[name])
        yield name, "modulators", 2 * width * len(plan.modulate.get(name, ()))
        yield name, "task tokens", plan.tokens_per_task * width * len(plan.expand.get(name, ()))
        if name in plan.adapt:
            layers = adapted_layers(name, block, plan.adapt_layers, iter(plan.copies)).values()
            sizes = sum(layer.in_features + layer.out_features for layer in layers)
            yield name, f"low-rank updates of rank {plan.rank}", plan.rank * sizes * len(plan.adapt[name])
        if name in plan.copies:
            copied = sum(parameter.numel() for parameter in chain(block.parameters(), block.buffers()))
            yield name, "copies", copied * len(plan.copies[name])
