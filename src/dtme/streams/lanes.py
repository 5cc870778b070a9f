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


def at(places: Places, lanes: Lanes) -> Places:
    """The rows of some lanes."""
    return [places[lane] for lane in lanes] if isinstance(places, list) else places[lanes]


def choose_lanes(folded: Tensor, lanes: int, chosen: Lanes, dim: int) -> Tensor:
    """The samples of some lanes, out of a batch that holds all of them along `dim`."""
    apart = unfold_lanes(folded, lanes, dim)
    if isinstance(chosen, list):
        own = apart.unbind(dim)
        return torch.cat([own[lane] for lane in chosen], dim)
    return apart.index_select(dim, chosen).flatten(dim, dim + 1)


def unfold_lanes(folded: Tensor, lanes: int, dim: int) -> Tensor:
    """A batch with a dimension of its own for the lanes, before that of their samples, which may be none."""
    return folded.unflatten(dim, (lanes, folded.shape[dim] // max(lanes, 1)))
