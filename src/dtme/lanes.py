"""Lanes: the parts of a folded batch, one after another, that belong to one stream or to one row each.

Which lanes are meant is a list where it follows from the plan, so that it can be compiled, and a tensor where rows have
tasks of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dtme._shapes import Int

Places = list[int] | Int[Tensor, " lanes"]
"""Per lane, the row of its task in a stacked parameter; -1 where it has none. A tensor where rows have their own tasks."""

Lanes = list[int] | Int[Tensor, " chosen"]
"""Some lanes of a pass; a tensor where rows have their own tasks."""


def rows_of(stacked: Tensor, places: Places, neutral: float) -> Tensor:
    """One row of a stacked parameter per lane; the neutral value where a lane has none."""
    if isinstance(places, list):
        first = places[0] if places else -1
        if first >= 0 and places == list(range(first, first + len(places))):
            return stacked[first : first + len(places)]  # a view
        return torch.stack([torch.full_like(stacked[0], neutral) if row < 0 else stacked[row] for row in places])
    return torch.cat([torch.full_like(stacked[:1], neutral), stacked])[places + 1]


def split(places: Places) -> tuple[Lanes, Lanes, Lanes]:
    """The lanes that have a row, those that have none, and the order that puts the two, one after the other, back."""
    if isinstance(places, list):
        having = [lane for lane, place in enumerate(places) if place >= 0]
        lacking = [lane for lane, place in enumerate(places) if place < 0]
        mixed = having + lacking
        return having, lacking, [mixed.index(lane) for lane in range(len(mixed))]
    having, lacking = (places >= 0).nonzero().flatten(), (places < 0).nonzero().flatten()
    return having, lacking, torch.cat([having, lacking]).argsort()


def at(places: Places, lanes: Lanes) -> Places:
    """The rows of some lanes."""
    return [places[lane] for lane in lanes] if isinstance(places, list) else places[lanes]


def choose_lanes(folded: Tensor, lanes: int, chosen: Lanes, dim: int) -> Tensor:
    """The samples of some lanes, out of a batch that holds all of them along `dim`."""
    if isinstance(chosen, list):
        apart = folded.unflatten(dim, (lanes, -1)).unbind(dim)
        return torch.cat([apart[lane] for lane in chosen], dim)
    return folded.unflatten(dim, (lanes, -1)).index_select(dim, chosen).flatten(dim, dim + 1)
