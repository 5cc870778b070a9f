"""How tokens pass through a block with an insert: the two hooks that lead them in and out.

`enter` folds the streams into the batch, modulates and expands; `leave` drops the task tokens and hands the streams back as
one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dtme._pytree import map_tensors, tensors_of
from dtme._tracing import runs_as_written
from dtme._wrappers import named_modules, unwrapped
from dtme.inserts.call_state import CallState
from dtme.inserts.insert import Insert, values_of
from dtme.inserts.layer_updates import check_all_ran
from dtme.inserts.modulation import modulate_lanes
from dtme.inserts.task_tokens import append_task_tokens, drop, drop_task_tokens, tokens_of_lanes
from dtme.streams.folding import fold, groups_of, part
from dtme.streams.fsdp import show_streams_plainly
from dtme.streams.groups import Groups, refine
from dtme.streams.tensor import Streams, lift
from dtme.trunk.batch_dim import check_companions, check_samples, check_square
from dtme.trunk.batched_arguments import is_told_by_name, rows_dim
from dtme.trunk.call import Arguments, BlockCall
from dtme.trunk.output import tokens_of
from dtme.trunk.probe import find_row_dims, shares_rows


@runs_as_written
def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The call of a block with its streams folded into the batch, modulated and expanded. A forward pre-hook."""
    insert: Insert = block.dtme  # pyright: ignore[reportAssignmentType]
    insert.calls.entered, insert.calls.state = True, None
    insert.routing.running.before_inserts = False
    if _is_passed_by(insert, args, kwargs) or _runs_elsewhere(insert):
        return args, kwargs
    call = insert.host.read(block, args, kwargs, _batch_within(insert))
    _check(insert, block, call)
    state = _begin(insert, call)
    if state.left_to_a_part:
        _find_row_dims(insert, block, call)
        insert.parts[0].calls.last, insert.calls.state = None, state
        return args, kwargs
    tokens = _modulate(insert, call.tokens, state)
    if len(state.groups) > 1 and state.rows is None and not state.within:
        call = _fold_others(insert, block, call, tokens, state)
    else:
        call = call.with_tokens(tokens)
    state.call = call
    if insert.expanded and not insert.apart:
        stacked: Tensor = values_of(insert)["tokens"]
        places = None if insert.joint else state.places(insert.expanded)
        extra = tokens_of_lanes(stacked, places, call.rows, state.lanes)
        state.call, state.appended = append_task_tokens(insert.host, block, call, extra), extra.shape[1]
    if state.lanes > 1:
        _find_row_dims(insert, block, state.call)
    insert.calls.state = state
    return state.call.arguments


@runs_as_written
def leave(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The forward hook of a block with an insert: its output without task tokens, its streams behind one tensor."""
    insert: Insert = block.dtme  # pyright: ignore[reportAssignmentType]
    calls, state = insert.calls, insert.calls.state
    calls.state = None
    if state is None:
        return output
    if state.left_to_a_part:
        calls.last = state.without_tensors()
        _check_parted(insert, output)
        return output
    check_all_ran(insert.host, state.idle)
    calls.last = state.without_tensors()
    call = state.call.given(args, kwargs)
    if state.appended:
        output = drop_task_tokens(insert.host, block, call, output, state.appended)
        call = call.with_tokens(drop(call.tokens, state.appended, call.layout))
    if not torch.compiler.is_compiling() and insert.routing.on_leave is not None and _holds_tensors(output):
        insert.routing.on_leave(insert.name, tokens_of(output, call.tokens, insert.name), state)
    if len(state.groups) > 1 and state.rows is None and not state.within:
        tokens = output if isinstance(output, Tensor) else tokens_of(output, call.tokens, insert.name)
        rows = tokens.shape[state.batch]
        split = partial(_part, tokens=tokens, groups=state.groups, rows=rows, dim=state.batch)
        output = map_tensors(output, split)
        if block._backward_hooks or block._backward_pre_hooks:
            output = map_tensors(output, lift)
    return output


def _begin(insert: Insert, call: BlockCall) -> CallState:
    """What is known of a call before anything is done to its tokens."""
    choice = insert.routing.choice
    state = CallState(call, insert.routing.tasks, rows=choice.rows)
    state.left_to_a_part = insert.leaves_to_a_part(call.args, call.kwargs)
    if state.left_to_a_part:
        return state
    state.within = insert.lies_within_streams()
    if choice.rows is not None:
        if len(choice.rows) != call.rows:
            raise ValueError(
                f"per_sample names the tasks of {len(choice.rows)} rows, but {call.rows} rows enter block {insert.name!r}."
            )
        state.groups = (choice.active,)
    else:
        state.groups = _groups(insert, call.tokens, choice.active)
        if len(state.groups) > 1 and not isinstance(call.tokens, Streams) and not torch.compiler.is_compiling():
            show_streams_plainly(insert.routing.model)
        state.lane_samples = _samples_of_a_lane(insert, call.rows, state)
    state.adapting = state.places(insert.adapted) if insert.adapted else []
    state.idle = set(insert.layers)
    return state


def _groups(insert: Insert, tokens: Tensor, active: tuple[str, ...]) -> Groups:
    """Which tasks each stream serves: those of the block that this one is a part of, or else of the tokens, parted further."""
    around = insert.outer.calls.state_inside if insert.outer is not None else None
    if around is not None and not around.left_to_a_part:
        return around.groups
    return refine(groups_of(tokens, active), insert.parting())


def _samples_of_a_lane(insert: Insert, rows: int, state: CallState) -> int:
    if not state.within or insert.outer is None:
        return rows
    if rows % state.lanes:
        raise ValueError(
            f"{rows} rows enter {insert.name!r} where the block {insert.outer.name!r} around it runs {state.lanes} streams, so "
            "that its rows are not told apart. Plan inserts for the block."
        )
    return rows // state.lanes


def _modulate(insert: Insert, given: Tensor, state: CallState) -> Tensor:
    """The folded tokens of every lane, modulated where its task has a modulator here."""
    places = state.places(insert.modulated)
    if not insert.modulated or (isinstance(places, list) and max(places, default=-1) < 0):
        return given if state.within or state.rows is not None else fold(given, state.groups, state.batch)
    own = values_of(insert)
    return modulate_lanes(given, own["scale"], own["shift"], insert.statistics, places, state)


def _batch_within(insert: Insert) -> int | None:
    """The dimension of the samples that is known of a part of a block, from the call of the block around it.

    Raises:
        ValueError: The part takes rows in which samples do not lie one after another.
    """
    outer = insert.outer
    around = None if outer is None else outer.calls.state_inside
    if outer is None or around is None:
        return None
    inside = insert.name.removeprefix(f"{outer.name}.")
    batch = outer.host.dims.get(inside, around.batch)
    if batch is None:
        raise ValueError(
            f"block {insert.name!r} takes rows in which the samples of {outer.name!r} do not lie one after another (windows, "
            "experts, positions and heads in one), so that streams cannot be told apart. Plan inserts for the whole block."
        )
    return batch


def _find_row_dims(insert: Insert, block: nn.Module, call: BlockCall) -> None:
    """Find out, once, where samples lie in what layers and parts inside the block take."""
    if "row dims" in insert.host.tried or torch.compiler.is_compiling() or not (insert.layers or insert.parts):
        return
    modules = {name: unwrapped(module) for name, module in named_modules(block)}
    inner = {layer: modules[_holder(modules, layer)] for layer in insert.layers}
    inner |= {name: modules[name] for name in _names_inside(insert)}
    dims = find_row_dims(block, call, inner)
    insert.host.dims.update(dims or {})
    insert.host.tried.add("row dims")


def _names_inside(insert: Insert) -> list[str]:
    return [part.name.removeprefix(f"{insert.name}.") for part in insert.parts]


def _holder(modules: Mapping[str, nn.Module], layer: str) -> str:
    """The module that runs a linear layer: an attention runs its projections."""
    name = layer
    while name:
        owner = name.rpartition(".")[0]
        if name in modules and not isinstance(modules.get(owner), nn.MultiheadAttention):
            return name
        name = owner
    return ""


def _check_parted(insert: Insert, output: Any) -> None:
    """Refuse a block that made one tensor of the streams that had parted in it."""
    part = insert.parts[0]
    last = part.calls.last
    if last is None or len(last.groups) < 2 or torch.compiler.is_compiling():
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


def _runs_elsewhere(insert: Insert) -> bool:
    """Whether another module runs this part of a block, which that holds as well: it has inserts in its block alone."""
    return insert.outer is not None and insert.outer.calls.state_inside is None


def _check(insert: Insert, block: nn.Module, call: BlockCall) -> None:
    channels = call.tokens.shape[call.layout.channel]
    if channels != insert.host.width:
        raise ValueError(
            f"tokens of {channels} channels enter block {insert.name!r}; its insert was made for {insert.host.width}, which "
            "its first layer takes. Plan inserts in other blocks."
        )
    if torch.compiler.is_compiling() or insert.outer is not None:
        return
    check_samples(insert.name, block, call.tokens, call.layout, insert.routing.running.given)
    if "samples" not in insert.host.tried and check_square(insert.name, block, call):
        insert.host.tried.add("samples")


def _fold_others(insert: Insert, block: nn.Module, call: BlockCall, tokens: Tensor, state: CallState) -> BlockCall:
    """The call with folded tokens, and with what else it holds per sample folded as they are."""
    samples, host = state.lane_samples, insert.host
    if not torch.compiler.is_compiling():
        check_companions(host.name, call.named(), samples, insert.routing.running.given)
        _find_shared(insert, block, call)
    folded: list[tuple[Tensor, int]] = []

    def change(argument: Tensor, dim: int) -> Tensor:
        own = fold(argument, state.groups, dim)
        folded.append((own, dim))
        return own

    try:
        call = call.change_rows(change, samples, host.rows_of).with_tokens(tokens)
    except ValueError as why:
        raise ValueError(f"block {host.name!r}: {why} Plan inserts in other blocks.") from None
    if insert.copied or insert.apart:
        state.seen = [
            (leaf, next((dim for made, dim in folded if made is leaf), None)) for leaf in tensors_of(call.arguments)
        ]
    return call


def _find_shared(insert: Insert, block: nn.Module, call: BlockCall) -> None:
    """Find out, once, which arguments as long as the batch are for all samples alike: a table per head, per query, say."""
    plain = call.change_each(lambda _, value: value._streams[0] if isinstance(value, Streams) else value)
    for name, value in call.named().items():
        known = f"rows of {name}" in insert.host.tried or is_told_by_name(name)
        if known or not isinstance(value, Tensor) or isinstance(value, Streams) or value is call.tokens:
            continue
        if call.rows > 1 and rows_dim(name, value, call.rows, call.length, call.layout.batch) == 0:
            insert.host.tried.add(f"rows of {name}")
            if shares_rows(block, plain, value):
                insert.host.rows_of[name] = None


def _holds_tensors(output: Any) -> bool:
    return next(tensors_of(output), None) is not None


def _part(tensor: Tensor, tokens: Tensor, groups: Groups, rows: int, dim: int) -> Tensor:
    weights = tensor is not tokens and tensor.ndim > 2 and tensor.shape[-1] == tensor.shape[-2]
    for axis in (0, dim) if weights else (dim, 0):  # attention weights come with samples first, whatever the tokens do
        if tensor.ndim > axis and tensor.shape[axis] == rows:
            return part(tensor, groups, axis)
    return tensor
