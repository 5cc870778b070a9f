"""How tokens pass through a block with an insert: the two hooks that lead them in and out.

`enter` folds the streams into the batch, modulates and expands; `leave` drops the task tokens and hands the streams back as
one tensor.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dtme.adapting import check_all_ran
from dtme.arguments import Call, change_rows, exchange, take, tokens_key
from dtme.expanding import expanded, with_those_held_back, without_task_tokens
from dtme.insert import Insert
from dtme.layout import Layout
from dtme.modulating import modulated
from dtme.one_stream import enter_by, kind_of, remember
from dtme.outputs import map_tensors, tensors_of, tokens_of
from dtme.parallel import show_streams_plainly
from dtme.remaking import remake
from dtme.sample_axis import check_companions, check_samples, check_square
from dtme.streams import Groups, Streams, fold, groups_of, part, refine


def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The forward pre-hook of a block with an insert: see `entered`."""
    insert: Insert = block.dtme  # pyright: ignore[reportAssignmentType]
    kind = kind_of(insert, block, args, kwargs)
    way = None if kind is None else insert.passage.ways.get(kind)
    if way is not None:
        return enter_by(insert, way, args, kwargs)
    call = entered(insert, block, args, kwargs)
    if kind is not None:
        remember(insert, block, kind, (args, kwargs), call)
    return call


def entered(insert: Insert, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The call of a block with its streams folded into the batch, modulated and expanded."""
    passage = insert.passage
    passage.entered = True
    if _is_passed_by(insert, args, kwargs):
        passage.groups = ()
        return args, kwargs
    key, layout = _place_and_layout(insert, block, args, kwargs)
    given: Tensor = take(args, kwargs, key)
    _check(insert, block, (args, kwargs), key, layout)
    passage.begin(layout.batch)
    passage.left_to_a_part = insert.leaves_to_a_part((args, kwargs))
    if passage.left_to_a_part:
        passage.groups = insert.parts[0].passage.groups = ()
        return args, kwargs
    rows, ids = given.shape[layout.batch], insert.routing.rows
    if ids is None:
        passage.groups = _groups(insert, given)
        lanes = len(passage.groups)
        if lanes > 1 and not isinstance(given, Streams) and not torch.compiler.is_compiling():
            show_streams_plainly(insert.routing.model)
    else:
        if len(ids) != rows:
            raise ValueError(
                f"per_sample names the tasks of {len(ids)} rows, but {rows} rows enter block {insert.name!r}."
            )
        passage.groups, lanes = (insert.routing.active,), rows
    samples = _samples(insert, rows, lanes)
    passage.adapting = insert.places(insert.adapted) if insert.adapted else []
    passage.lane_samples = samples if ids is None else 1
    passage.idle = set(insert.low_rank)
    tokens = modulated(insert, given, lanes, layout)
    call = exchange((args, kwargs), given, tokens)
    if len(passage.groups) > 1 and not insert.within_streams():
        call = _fold_others(insert, call, samples, tokens, given, layout)
    return call if insert.tokens is None else expanded(insert, block, call, key, lanes, layout)


def _groups(insert: Insert, given: Tensor) -> Groups:
    """Which tasks each stream serves: those of the block that this one is a part of, or else of the tokens, parted further."""
    if insert.outer is not None and insert.within_streams():
        return insert.outer.passage.groups
    return refine(groups_of(given, insert.routing.active), insert.parting())


def _samples(insert: Insert, rows: int, lanes: int) -> int:
    """Samples of a lane, or all rows where each is a lane."""
    if insert.outer is None or not insert.within_streams() or insert.routing.rows is not None:
        return rows
    if rows % lanes:
        raise ValueError(
            f"{rows} rows enter {insert.name!r} where the block {insert.outer.name!r} around it runs {lanes} streams, so that "
            "its rows are not told apart. Plan inserts for the block."
        )
    return rows // lanes


def leave(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The forward hook of a block with an insert: its output without task tokens, its streams behind one tensor."""
    insert: Insert = block.dtme  # pyright: ignore[reportAssignmentType]
    check_all_ran(insert)
    passage = insert.passage
    if passage.left_to_a_part:
        _check_parted(insert, output)
        return output
    if passage.recipe is not None:
        remake(insert, passage.recipe, (args, kwargs), output)
    passage.recipe, passage.folded = None, []
    if not (passage.appended or passage.held or len(passage.groups) > 1):
        return output
    given: Tensor = take(args, kwargs, tokens_key(args, kwargs, insert.argument_names))
    layout = insert.layout_of(block, given)
    whole = tokens = output if isinstance(output, Tensor) else tokens_of(output, given, insert.name)
    if passage.appended:
        tokens, output = without_task_tokens(insert, block, (args, kwargs), given, whole, output, layout)
    if passage.held is not None:
        tokens, output = with_those_held_back(insert, block, tokens, whole, output, layout)
    output = tokens if output is whole else map_tensors(output, lambda tensor: tokens if tensor is whole else tensor)
    if len(passage.groups) > 1 and not insert.within_streams():
        rows = tokens.shape[layout.batch]
        split = partial(_part, tokens=tokens, groups=passage.groups, rows=rows, dim=layout.batch)
        output = map_tensors(output, split)
    return output


def _check_parted(insert: Insert, output: Any) -> None:
    """Refuse a block that made one tensor of the streams that had parted in it."""
    part = insert.parts[0]
    if len(part.passage.groups) < 2 or torch.compiler.is_compiling():
        return
    if not any(isinstance(tensor, Streams) and hasattr(tensor, "_streams") for tensor in tensors_of(output)):
        raise RuntimeError(
            f"streams part in {part.name!r}, and block {insert.name!r} makes one tensor of them: something in it, a scripted "
            "function say, takes them for one. Plan inserts for the whole block."
        )


def _is_passed_by(insert: Insert, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the block has nothing of its own and no streams of tokens come: one of a decoder, whatever it takes."""
    if insert.changes_tokens():
        return False
    given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point())
    tokens = next(given, None)
    return not (isinstance(tokens, Streams) and tokens.ndim in (3, 4))


def _place_and_layout(
    insert: Insert, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int | str, Layout]:
    try:
        key = tokens_key(args, kwargs, insert.argument_names)
        return key, insert.layout_of(block, take(args, kwargs, key))
    except ValueError as why:
        raise ValueError(f"block {insert.name!r}: {why} Plan inserts in other blocks.") from None


def _check(insert: Insert, block: nn.Module, call: Call, key: int | str, layout: Layout) -> None:
    tokens: Tensor = take(*call, key)
    if tokens.shape[layout.channel] != insert.width:
        raise ValueError(
            f"tokens of {tokens.shape[layout.channel]} channels enter block {insert.name!r}; its insert was made for "
            f"{insert.width}, which its first layer takes. Plan inserts in other blocks."
        )
    if torch.compiler.is_compiling() or insert.outer is not None:
        return
    check_samples(insert.name, block, tokens, layout, insert.routing.given)
    if "samples" not in insert.tried and check_square(insert.name, block, call, key, layout):
        insert.tried.add("samples")


def _fold_others(insert: Insert, call: Call, samples: int, tokens: Tensor, given: Tensor, layout: Layout) -> Call:
    """The call with what else it holds per sample folded as the tokens are."""
    length = None if layout.token is None else given.shape[layout.token]
    if not torch.compiler.is_compiling():
        check_companions(insert.name, insert.named(call), samples, insert.routing.given)
    folded: list[tuple[Tensor, int]] = []

    def change(argument: Tensor, dim: int) -> Tensor:
        groups = insert.passage.groups
        own = insert.routing.made.once(argument, ("folded", groups, dim), lambda: fold(argument, groups, dim))
        folded.append((own, dim))
        return own

    try:
        call = change_rows(call, insert.argument_names, samples, length, change, tokens, layout.batch)
    except ValueError as why:
        raise ValueError(f"block {insert.name!r}: {why} Plan inserts in other blocks.") from None
    if insert.runs_in_parts():
        insert.passage.folded = [
            (leaf, next((dim for made, dim in folded if made is leaf), None)) for leaf in tensors_of(call)
        ]
    return call


def _part(tensor: Tensor, tokens: Tensor, groups: Groups, rows: int, dim: int) -> Tensor:
    weights = tensor is not tokens and tensor.ndim > 2 and tensor.shape[-1] == tensor.shape[-2]
    for axis in (0, dim) if weights else (dim, 0):  # attention weights come with samples first, whatever the tokens do
        if tensor.ndim > axis and tensor.shape[axis] == rows:
            return part(tensor, groups, axis)
    return tensor
