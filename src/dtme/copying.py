"""Blocks of which some tasks have a copy for themselves (ours, not the paper's): each lane runs through that of its task.

The forward of the block, and of that object alone, is exchanged; its class, parameters and hooks stay, and so the tokens that
it is called with have been folded and modulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dtme.arguments import take, tokens_key
from dtme.expanding import of_lanes
from dtme.insert import Insert
from dtme.joining import joined
from dtme.lanes import Lanes
from dtme.outputs import tokens_of


class Branching:
    """What stands for the forward of a block.

    Attributes:
        block: The block.
        before: The forward that the object had, if not that of its class.
        branches: Tells it from other forwards.
    """

    branches = True

    def __init__(self, block: nn.Module, before: Any) -> None:
        self.block = block
        self.before = before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output, of every lane by its task's copy."""
        insert: Any = self.block._modules.get("dtme")
        if insert is None:  # removed, while someone else's forward goes on calling this one
            return self._forward(self.block, args, kwargs)
        parts = list(_parts(insert))
        if len(parts) < 2:
            return self._one(insert, parts[0][0] if parts else -1, args, kwargs)
        _check(insert, args, kwargs)
        key = tokens_key(args, kwargs, insert.argument_names)
        tokens: Tensor = take(args, kwargs, key)
        layout = insert.layout_of(self.block, tokens)
        rows = tokens.shape[layout.batch]
        length = 0 if layout.token is None else tokens.shape[layout.token]
        lanes = sum(len(chosen) for _, chosen in parts)
        outputs, apart = [], []
        for place, chosen in parts:
            own_args, own_kwargs = of_lanes(insert, (args, kwargs), key, lanes, layout, rows, length, chosen)
            output = self._one(insert, place, own_args, own_kwargs)
            outputs.append(output)
            apart.append(tokens_of(output, take(own_args, own_kwargs, key), insert.name))
        return joined(insert.name, outputs, apart, _order([chosen for _, chosen in parts]), layout.batch)

    def _one(self, insert: Insert, place: int, args: Any, kwargs: Any) -> Any:
        return self._forward(self.block if place < 0 else insert.copies[place], args, kwargs)

    def _forward(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        """The forward of the block or of a copy past its hooks, which have been called around this one."""
        if hasattr(block, "unshard") and block is not self.block:  # sharded by itself: its hooks gather its weights
            return block(*args, **kwargs)
        own = self.before if block is self.block else vars(block).get("forward")
        return type(block).forward(block, *args, **kwargs) if own is None else own(*args, **kwargs)


@dataclass
class Branched:
    """A block whose forward has been exchanged."""

    block: nn.Module

    def remove(self) -> None:
        """Give it back the forward that it had; one that was put around ours since goes on, and finds no copies."""
        ours: Any = vars(self.block).get("forward")
        if not getattr(ours, "branches", False):
            return
        del self.block.forward
        if ours.before is not None:
            self.block.forward = ours.before


def branch(block: nn.Module) -> Branched:
    """Let a block lead each lane through the copy of its task."""
    block.forward = Branching(block, vars(block).get("forward"))
    return Branched(block)


def _parts(insert: Insert) -> Iterator[tuple[int, Lanes]]:
    """The copies that a pass needs, by their place, the block itself as -1; and which lanes go through each."""
    places = insert.places(insert.copied)
    for place in range(-1, len(insert.copied)):
        if isinstance(places, list):
            chosen: Lanes = [lane for lane, own in enumerate(places) if own == place]
        else:
            chosen = (places == place).nonzero().flatten()
        if len(chosen):
            yield place, chosen


def _check(insert: Insert, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for name, value in insert.named((args, kwargs)).items():
        if hasattr(value, "get_seq_length"):
            raise ValueError(
                f"copies: block {insert.name!r} keeps keys and values in {name}, where those of its copies would be taken for "
                "more positions of its own: call the model with use_cache=False, or set model.config.use_cache = False."
            )


def _order(chosen: list[Lanes]) -> Lanes:
    """Which lane of all parts, one after the other, stands at each place of the batch."""
    if isinstance(chosen[0], list):
        mixed = [lane for lanes in chosen for lane in lanes]
        return [mixed.index(lane) for lane in range(len(mixed))]
    return torch.cat([torch.as_tensor(lanes) for lanes in chosen]).argsort()
