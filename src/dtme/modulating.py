"""The tokens of every lane of a pass modulated, where its task has a modulator in the block."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dtme.insert import Insert, Recipe
from dtme.lanes import Places, rows_of
from dtme.layout import Layout
from dtme.modulation import modulate
from dtme.streams import Streams, fold


def modulated(insert: Insert, given: Tensor, lanes: int, layout: Layout) -> Tensor:
    """The folded tokens of every lane, modulated where its task has a modulator here."""
    places = insert.places(insert.modulated)
    if insert.scale is None or insert.shift is None or (isinstance(places, list) and max(places) < 0):
        return given if insert.within_streams() else fold(given, insert.passage.groups, layout.batch)
    if insert.routing.rows is not None:
        unfolded = given.unsqueeze(layout.batch + 1)
    elif insert.within_streams():
        unfolded = given.unflatten(layout.batch, (lanes, -1))
    elif isinstance(given, Streams):
        unfolded = fold(given, insert.passage.groups, layout.batch).unflatten(layout.batch, (lanes, -1))
    else:
        unfolded = given.unsqueeze(layout.batch)  # broadcast over the lanes: the product makes the copies
    if insert.statistics is not None:
        unfolded = _normalised(insert, unfolded, places, lanes, layout)
    shape = [1] * unfolded.ndim
    shape[layout.batch], shape[_behind_lanes(layout.channel)] = lanes, insert.width
    scale, shift = rows_of(insert.scale, places, 1.0), rows_of(insert.shift, places, 0.0)
    sources = scale.view(shape), shift.view(shape), unfolded
    make = partial(_folded, dim=layout.batch)
    made = make(*sources)
    if made.requires_grad and not torch.compiler.is_compiling():
        insert.passage.recipe = Recipe(made, make, sources, made._version)
    return made


def _folded(scale: Tensor, shift: Tensor, unfolded: Tensor, dim: int) -> Tensor:
    return modulate(unfolded, scale, shift).flatten(dim, dim + 1)


def _normalised(insert: Insert, unfolded: Tensor, places: Places, lanes: int, layout: Layout) -> Tensor:
    """The lanes of each task normalised together, by that task's statistics."""
    statistics = insert.statistics
    assert statistics is not None

    def own(tokens: Tensor, row: int, channel: int) -> Tensor:
        return statistics(tokens.movedim(channel, -1), row).movedim(-1, channel)

    unfolded = unfolded.expand([lanes if dim == layout.batch else size for dim, size in enumerate(unfolded.shape)])
    if isinstance(places, list):
        apart = zip(unfolded.unbind(layout.batch), places, strict=True)
        return torch.stack([t if row < 0 else own(t, row, layout.channel) for t, row in apart], layout.batch)
    normed = unfolded
    for row in range(len(insert.modulated)):
        members = (places == row).nonzero().flatten()
        if len(members):
            chosen = unfolded.index_select(layout.batch, members)
            normed = normed.index_copy(layout.batch, members, own(chosen, row, _behind_lanes(layout.channel)))
    return normed


def _behind_lanes(dim: int) -> int:
    """A dimension of the tokens once the batch is unfolded into lanes and samples."""
    return dim if dim < 0 else dim + 1
