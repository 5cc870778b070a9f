"""One stream alone through a block: what its call was found to be is known of the next call of that kind.

Inference of one task is then hardly slower than that of the unmodified model. What a call is depends on what the block and
the model are given, and on the tasks that are computed: on shapes, types and flags, and on whether the block says where its
samples lie. What depends on values is found out before a way is kept: that samples are samples, that task tokens are seen.

Looked at each time are calls with gradients, of streams or of rows that have tasks of their own; blocks that are parts, have
parts, copies or statistics; and with task tokens whatever a block is told of positions, masks or other sequences.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dtme.arguments import Call, exchange, take, tokens_key
from dtme.eager import is_transformed, is_watched
from dtme.expansion import append, kind_of_call
from dtme.insert import Insert
from dtme.lanes import Places
from dtme.layout import Layout
from dtme.modulation import modulate
from dtme.streams import Groups, Streams

MOST = 256
"""Kinds of calls that are remembered: sentences have many lengths."""


@dataclass(frozen=True)
class Way:
    """How one stream goes through a block.

    Attributes:
        key: Where in the call the tokens are.
        layout: How these lie.
        groups: The tasks that the stream serves.
        modulator: The row of its modulator, `None` without one.
        tokens: Its task tokens, as rows among all of them; `None` without any.
        adapting: The row of its low-rank updates.
    """

    key: int | str
    layout: Layout
    groups: Groups
    modulator: int | None
    tokens: slice | None
    adapting: Places | None


def kind_of(insert: Insert, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable | None:
    """What the way of a call depends on; `None` where it is to be looked at anew."""
    routing = insert.routing
    if is_transformed() or is_watched() or torch.is_grad_enabled() or routing.rows is not None:
        return None
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and (isinstance(value, Streams) or value.is_nested):
            return None
    named = tuple([(name, _kind(value)) for name, value in kwargs.items()]) if kwargs else ()
    # A module takes long to say that it has no such attribute.
    own = "batch_first" in vars(block) or hasattr(type(block), "batch_first")
    said = block.batch_first if own else None
    return routing.active, routing.given, said, tuple([_kind(value) for value in args]), named


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return type(value), value.shape, value.dtype
    return value if value is None or isinstance(value, bool) else type(value)


def remember(insert: Insert, block: nn.Module, kind: Hashable, given: Call, call: Call) -> None:
    """Keep the way that a call has just taken, where all that was decided about it depends on its kind alone.

    Args:
        insert: Of the block.
        block: The block.
        kind: From `kind_of`.
        given: What the block was called with.
        call: What it runs with.
    """
    passage = insert.passage
    one = len(passage.groups) == 1 and passage.held is None and not passage.left_to_a_part
    if not one or insert.outer is not None or insert.parts or insert.statistics is not None or insert.copies:
        return
    key = tokens_key(*given, insert.argument_names)
    tokens: Tensor = take(*given, key)
    if type(tokens) is not Tensor:
        return
    if tokens.ndim == 3 and 1 < len(tokens) == tokens.shape[1] and "samples" not in insert.tried:
        return  # which of the two are the samples is found out from values
    if passage.appended and not ("task tokens" in insert.tried and _is_told_nothing(insert, given, call, tokens)):
        return
    layout = insert.layout_of(block, tokens)
    way = Way(key, layout, passage.groups, _place(insert, insert.modulated), _rows_of_tokens(insert), passage.adapting)
    if len(passage.ways) >= MOST:
        passage.ways.clear()
    passage.ways[kind] = way


def _is_told_nothing(insert: Insert, given: Call, call: Call, tokens: Tensor) -> bool:
    """Whether a block is given its tokens, once, and nothing that follows them when these are more."""
    before, now = _values(given), _values(call)
    if len(before) != len(now) or sum(not (was is None or isinstance(was, bool)) for was in before) != 1:
        return False
    if kind_of_call(insert.named(given), tokens.shape[1]) is None:  # a flag that asks for a mask
        return False
    return all(was is tokens or was is new for was, new in zip(before, now, strict=True))


def _values(call: Call) -> list[Any]:
    return [*call[0], *call[1].values()]


def _place(insert: Insert, tasks: tuple[str, ...]) -> int | None:
    """The row of the stream's task among those of some tasks."""
    task = insert.passage.groups[0][0]
    return tasks.index(task) if task in tasks else None


def _rows_of_tokens(insert: Insert) -> slice | None:
    if not insert.passage.appended:
        return None
    place = None if insert.joint else _place(insert, insert.expanded)
    return slice(None) if place is None else slice(place, place + 1)


def enter_by(insert: Insert, way: Way, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The call of a block with its tokens modulated and task tokens behind them: see `crossing.entered`, which gives the same."""
    passage, layout = insert.passage, way.layout
    given = tokens = take(args, kwargs, way.key)
    passage.begin(layout.batch)
    passage.groups, passage.adapting, passage.lane_samples = way.groups, way.adapting, given.shape[layout.batch]
    if insert.adapted:
        passage.idle = set(insert.low_rank)
    if way.modulator is not None:
        assert insert.scale is not None
        assert insert.shift is not None
        scale, shift = insert.scale[way.modulator], insert.shift[way.modulator]
        if layout.channel != -1:
            shape = [1] * given.ndim
            shape[layout.channel] = insert.width
            scale, shift = scale.view(shape), shift.view(shape)
        tokens = modulate(given, scale, shift)
    if way.tokens is not None:
        assert insert.tokens is not None
        extra = insert.tokens[way.tokens].flatten(0, 1)
        passage.appended = len(extra)
        tokens = append(tokens, extra.expand(passage.lane_samples, -1, -1), layout)
    if tokens is given:
        return args, kwargs
    return exchange((args, kwargs), given, tokens)
