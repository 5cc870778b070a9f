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
from dtme.lanes import Lanes, choose_lanes
from dtme.outputs import map_tensors, tensors_of, tokens_of


class Branching:
    """What stands for the forward of a block.

    Attributes:
        block: The block.
        before: The forward that the object had, if not that of its class.
    """

    def __init__(self, block: nn.Module, before: Any) -> None:
        self.block = block
        self.before = before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output, of every lane by its task's copy."""
        insert: Insert = self.block.dtme  # pyright: ignore[reportAssignmentType]
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
        return _joined(outputs, apart, _order([chosen for _, chosen in parts]), layout.batch)

    def _one(self, insert: Insert, place: int, args: Any, kwargs: Any) -> Any:
        if place >= 0:
            return insert.copies[place](*args, **kwargs)
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.block).forward(self.block, *args, **kwargs)


@dataclass
class Branched:
    """A block whose forward has been exchanged."""

    block: nn.Module

    def remove(self) -> None:
        """Give it back the forward that it had."""
        before = vars(self.block)["forward"].before
        del self.block.forward
        if before is not None:
            self.block.forward = before


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


def _joined(outputs: list[Any], tokens: list[Tensor], order: Lanes, dim: int) -> Any:
    """One output of several: tokens, and whatever else there is per row, of all lanes."""
    rows = [own.shape[dim] for own in tokens]
    others = [list(tensors_of(output)) for output in outputs]
    place = iter(range(len(others[0])))

    def joined(tensor: Tensor) -> Tensor:
        number = next(place)
        own = [tensors[number] for tensors in others]
        if tensor is tokens[0]:
            return choose_lanes(torch.cat(tokens, dim), len(order), order, dim)
        per_row = all(
            each.ndim and len(each) == many and each.shape[1:] == tensor.shape[1:]
            for each, many in zip(own, rows, strict=True)
        )
        return choose_lanes(torch.cat(own), len(order), order, 0) if per_row else tensor

    return map_tensors(outputs[0], joined)
