"""Task tokens in a block's call, and out of its output again.

Lanes whose task has none here are held back, and run when the others leave.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from dtme.arguments import Call, change_rows, exchange, has_rows, put, take, tokens_key
from dtme.expansion import (
    append,
    causal_mask,
    crop,
    drop,
    extend_mask,
    extend_positions,
    extend_rows,
    is_causal,
    is_mask,
    is_mask_over_others,
    kind_of_call,
    mask_argument,
    meets_another,
    position_bias_of,
    refusal,
)
from dtme.insert import Insert, Recipe
from dtme.lanes import Lanes, at, choose_lanes, rows_of, split
from dtme.layout import Layout
from dtme.outputs import map_tensors, tensors_of, tokens_of
from dtme.sight import shows_its_end


def expanded(insert: Insert, block: nn.Module, call: Call, key: int | str, lanes: int, layout: Layout) -> Call:
    """A block's call with the task tokens of those lanes that have some; the others are held back."""
    assert insert.tokens is not None
    tokens: Tensor = take(*call, key)
    if layout.token is None:
        raise ValueError(
            f"expand: block {insert.name!r} takes tokens on a grid {tuple(tokens.shape)}, where task tokens have no place. "
            "Plan modulation there instead: report.plan(expansion=False)."
        )
    passage, length = insert.passage, tokens.shape[layout.token]
    passage.hides_later = _hides_later(insert, block, insert.named(call), length)
    rows = tokens.shape[layout.batch]
    if insert.joint:
        return _appended(insert, block, call, key, layout, insert.tokens.flatten(0, 1).expand(rows, -1, -1))
    places = insert.places(insert.expanded)
    if len(insert.expanded) < len(insert.routing.tasks):
        having, lacking, order = split(places)
        adapting = passage.adapting
        assert adapting is not None
        if not len(having):
            return call
        if len(lacking):
            choose = partial(of_lanes, insert, call, key, lanes, layout, rows, length)
            passage.held = order, choose(lacking), at(adapting, lacking) if insert.adapted else []
            call, places = choose(having), at(places, having)
            passage.adapting = at(adapting, having) if insert.adapted else []
    extra = rows_of(insert.tokens, places, 0.0).unsqueeze(1).expand(-1, rows // lanes, -1, -1).flatten(0, 1)
    return _appended(insert, block, call, key, layout, extra)


def without_task_tokens(
    insert: Insert, block: nn.Module, call: Call, entered: Tensor, whole: Tensor, output: Any, layout: Layout
) -> tuple[Tensor, Any]:
    """Of a block's output its tokens `whole` without the task's, and the output with its matrices over positions cropped."""
    assert layout.token is not None
    lengths = [tokens.shape[layout.token] for tokens in (entered, whole)]
    if whole.ndim != entered.ndim or lengths[0] != lengths[1]:
        told = f"of {lengths[0]} tokens, the task's own included, it returns {lengths[1]}, and which these are is not known"
        raise ValueError(_refused(insert, block, told))
    if output is not whole:
        others = meets_another(insert.named(call), lengths[1], layout)
        output = crop(output, whole, insert.passage.appended, layout, meets_as_long=others)
    return drop(whole, insert.passage.appended, layout), output


def with_those_held_back(
    insert: Insert, block: nn.Module, tokens: Tensor, whole: Tensor, output: Any, layout: Layout
) -> tuple[Tensor, Any]:
    """The tokens of all lanes, and the output with whatever else it holds per row, those held back having run."""
    passage = insert.passage
    assert passage.held is not None
    order, (args, kwargs), passage.adapting = passage.held
    passage.held = None
    key = tokens_key(args, kwargs, insert.argument_names)
    held = block.forward(*args, **kwargs)
    passage.adapting = None  # a recomputation of the block's forward alone is of one part or the other
    held_tokens = tokens_of(held, take(args, kwargs, key), insert.name)
    rows = whole.shape[layout.batch], held_tokens.shape[layout.batch]
    others = iter(tensors_of(held))

    def joined(tensor: Tensor) -> Tensor:
        """Biases, attention and the like."""
        other = next(others, tensor)
        both = 0 not in (tensor.ndim, other.ndim) and tensor is not whole
        per_row = both and (len(tensor), len(other)) == rows and tensor.shape[1:] == other.shape[1:]
        return _rejoined(tensor, other, order, 0) if per_row else tensor

    output = map_tensors(output, joined)
    return _rejoined(tokens, held_tokens, order, layout.batch), output


def _rejoined(having: Tensor, held: Tensor, order: Lanes, dim: int) -> Tensor:
    return choose_lanes(torch.cat([having, held], dim), len(order), order, dim)


def of_lanes(
    insert: Insert, call: Call, key: int | str, lanes: int, layout: Layout, rows: int, length: int, chosen: Lanes
) -> Call:
    """The call for some of its lanes."""
    tokens: Tensor = take(*call, key)
    own = choose_lanes(tokens, lanes, chosen, layout.batch)

    def choose(argument: Tensor, dim: int) -> Tensor:
        choice = partial(choose_lanes, argument, lanes, chosen, dim)
        if not isinstance(chosen, list):
            return choice()
        return insert.routing.made.once(argument, ("lanes", lanes, tuple(chosen), dim), choice)

    known = insert.passage.folded
    return change_rows(
        exchange(call, tokens, own), insert.argument_names, rows, length, choose, own, layout.batch, known
    )


def _hides_later(insert: Insert, block: nn.Module, named: dict[str, Any], length: int) -> bool:
    """Whether the block hides later positions by itself in such a call; one that takes no task tokens is refused.

    To look through its modules costs a few per cent of a small block's time, so it is asked once for calls of a kind.
    """
    kind = None if torch.compiler.is_compiling() else kind_of_call(named, length)
    if kind is not None and kind in insert.kinds:
        return insert.kinds[kind]
    reason = refusal(block, named, length, insert.hiding)
    if reason is not None:
        raise ValueError(_refused(insert, block, reason))
    hides = is_causal(block, named)
    if kind is not None:
        insert.kinds[kind] = hides
    return hides


def _refused(insert: Insert, block: nn.Module, reason: str) -> str:
    return (
        f"expand: block {insert.name!r} ({type(block).__name__}) takes no task tokens: {reason}. Or plan modulation there: "
        "report.plan(expansion=False)."
    )


def _appended(
    insert: Insert, block: nn.Module, call: Call, key: int | str, layout: Layout, extra: Float[Tensor, "samples n p"]
) -> Call:
    """The call with task tokens behind its own, and with what it says of positions as long as they are then."""
    assert layout.token is not None
    tokens: Tensor = take(*call, key)
    count, rows, length = extra.shape[1], tokens.shape[layout.batch], tokens.shape[layout.token]
    whole = append(tokens, extra, layout)
    passage = insert.passage
    passage.appended = count
    recipe, passage.recipe = passage.recipe, None
    if recipe is not None and recipe.made is tokens:
        make = partial(_made_and_appended, make=recipe.make, layout=layout)
        passage.recipe = Recipe(whole, make, (extra, *recipe.sources), whole._version)

    once = insert.routing.made.once

    def widened(place: int | str, value: Any) -> Any:
        name = place if isinstance(place, str) else "".join(insert.argument_names[place : place + 1])
        if value is tokens:
            return whole
        if name == "is_causal":
            return False  # a hint about the mask beside it, which is causal no longer
        if is_mask_over_others(name, value, length):
            return once(value, ("rows", count), lambda: extend_rows(value, count))
        if not is_mask(name, value, length):
            try:
                return extend_positions(name, value, length, count)
            except ValueError as why:
                raise ValueError(_refused(insert, block, str(why))) from None
        by_sample = value.ndim == 2 and has_rows(name, value, rows, length)
        extend = partial(extend_mask, value, length, count, true_hides=insert.true_hides, by_sample=by_sample)
        return once(value, ("extended", length, count, insert.true_hides, by_sample), extend)

    args, kwargs = _told_positions(insert, block, call, tokens, length)
    wide = tuple(widened(i, v) for i, v in enumerate(args)), {name: widened(name, v) for name, v in kwargs.items()}
    _check_they_are_seen(insert, block, wide, key, layout)
    return wide


def _made_and_appended(extra: Tensor, *sources: Tensor, make: Callable[..., Tensor], layout: Layout) -> Tensor:
    return append(make(*sources), extra, layout)


def _check_they_are_seen(insert: Insert, block: nn.Module, call: Call, key: int | str, layout: Layout) -> None:
    if "task tokens" in insert.tried or torch.compiler.is_compiling():
        return
    shown = shows_its_end(block, call, key, layout, insert.passage.appended)
    if shown is False:
        why = "earlier positions do not see later ones, whatever mask it is given"
        raise ValueError(_refused(insert, block, why))
    if shown:
        insert.tried.add("task tokens")


def _told_positions(insert: Insert, block: nn.Module, call: Call, tokens: Tensor, length: int) -> Call:
    """The call with the mask and the biases of positions that the block, told none, would make from the length."""
    named = insert.named(call)
    mask = mask_argument(tuple(named)) if insert.passage.hides_later else None
    if mask is not None and named[mask] is None:
        kind = "causal", length, tokens.dtype, tokens.device
        made = insert.routing.made.once(None, kind, lambda: causal_mask(length, tokens))
        call = _with_argument(insert, call, mask, made)
    wanted = "position_bias" in named and named["position_bias"] is None
    bias = position_bias_of(block) if wanted else None
    if bias is not None:
        call = _with_argument(insert, call, "position_bias", bias(length, length))
    return call


def _with_argument(insert: Insert, call: Call, name: str, value: Tensor) -> Call:
    names = insert.argument_names
    place = names.index(name) if name in names else len(call[0])
    return put(*call, place if place < len(call[0]) else name, value)
