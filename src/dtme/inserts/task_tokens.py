"""Token expansion (Sec. 4.3, App. B.3): learnable task tokens join the sequence before a block and leave it after.

Task tokens carry no position and every position of their stream sees them, whatever mask the block is given: what a
block is told about the positions of the sequence is extended, or the block is refused by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dtme._pytree import map_tensors
from dtme._shapes import Float
from dtme.inserts.expandable import is_causal, kind_of_call, refusal
from dtme.inserts.host import Host
from dtme.inserts.masks import (
    causal_mask,
    crop,
    extend_mask,
    extend_rows,
    is_mask,
    is_mask_over_others,
    mask_argument,
    meets_another,
)
from dtme.inserts.positions import extend_positions, position_bias_of
from dtme.streams.lanes import Places, rows_of
from dtme.trunk.batched_arguments import has_rows
from dtme.trunk.call import BlockCall
from dtme.trunk.layout import Layout
from dtme.trunk.output import tokens_of
from dtme.trunk.probe import shows_its_end


def draw_task_tokens(tokens: Tensor) -> None:
    """Small normal values, as vision transformers start their class token (standard deviation 0.02)."""
    with torch.no_grad():
        tokens.normal_(0.0, 0.02)


def tokens_of_lanes(
    tokens: Float[Tensor, "tasks n p"], places: Places | None, rows: int, lanes: int
) -> Float[Tensor, "rows n p"]:
    """The task tokens of each row of a call.

    Args:
        tokens: `n` of each task.
        places: Per lane, the task's row among them; `None` where every row gets those of all tasks.
        rows: Rows of the call.
        lanes: Lanes that these make.
    """
    if places is None:
        return tokens.flatten(0, 1).expand(rows, -1, -1)
    return rows_of(tokens, places, 0.0).unsqueeze(1).expand(-1, rows // max(lanes, 1), -1, -1).flatten(0, 1)


def append_task_tokens(host: Host, block: nn.Module, call: BlockCall, extra: Float[Tensor, "rows n p"]) -> BlockCall:
    """The call with task tokens behind its own, and with what it says of positions as long as they are then.

    Raises:
        ValueError: The block takes none in such a call; the message says why.
    """
    layout, tokens, length, rows = call.layout, call.tokens, call.length, call.rows
    if length is None:
        raise ValueError(
            f"expand: block {host.name!r} takes tokens on a grid {tuple(tokens.shape)}, where task tokens have no place. "
            "Plan modulation there instead: report.plan(expansion=False)."
        )
    call = _tell_positions(block, call, hides_later=_hides_later(host, block, call))
    count, whole = extra.shape[1], append(tokens, extra, layout)

    def extend(name: str, value: Any) -> Any:
        if value is tokens:
            return whole
        if name == "is_causal":
            return False  # a hint about the mask beside it, which is causal no longer
        if is_mask_over_others(name, value, length):
            return extend_rows(value, count)
        if not is_mask(name, value, length):
            try:
                return extend_positions(name, value, length, count)
            except ValueError as why:
                raise ValueError(_refused(host, block, str(why))) from None
        by_sample = value.ndim == 2 and has_rows(name, value, rows, length)
        return extend_mask(value, length, count, true_hides=host.true_hides, by_sample=by_sample)

    longer = call.change_each(extend)
    _check_they_are_seen(host, block, longer, count)
    return longer


def drop_task_tokens(host: Host, block: nn.Module, call: BlockCall, output: Any, count: int) -> Any:
    """A block's output without the task's tokens, its matrices over positions cropped.

    Args:
        host: Facts about the block.
        block: The block.
        call: That it ran with, task tokens included.
        output: What it gave.
        count: Task tokens at the end.

    Raises:
        ValueError: It gave more or fewer tokens than it took.
    """
    whole = output if isinstance(output, Tensor) else tokens_of(output, call.tokens, host.name)
    layout, length = call.layout, call.length
    assert layout.token is not None
    assert length is not None
    if whole.ndim != call.tokens.ndim or whole.shape[layout.token] != length:
        told = f"of {length} tokens, the task's own included, it returns {whole.shape[layout.token]}, and which these are is"
        raise ValueError(_refused(host, block, f"{told} not known"))
    tokens = drop(whole, count, layout)
    if output is whole:
        return tokens
    others = meets_another(call.named(), length, layout)
    output = crop(output, whole, count, layout, meets_as_long=others)
    return map_tensors(output, lambda tensor: tokens if tensor is whole else tensor)


def append(tokens: Tensor, extra: Float[Tensor, "samples n p"], layout: Layout) -> Tensor:
    """The sequence with each sample's task tokens at its end."""
    assert layout.token is not None
    return torch.cat([tokens, extra.movedim(0, layout.batch).to(tokens.dtype)], layout.token)


def drop(tokens: Tensor, count: int, layout: Layout) -> Tensor:
    """The sequence without the `count` task tokens at its end."""
    assert layout.token is not None
    return tokens.narrow(layout.token, 0, tokens.shape[layout.token] - count)


def _hides_later(host: Host, block: nn.Module, call: BlockCall) -> bool:
    """Whether the block hides later positions by itself in such a call; one that takes no task tokens is refused.

    To look through its modules costs a few per cent of a small block's time, so it is asked once for calls of a kind.
    """
    named, length = call.named(), call.length
    assert length is not None
    kind = None if torch.compiler.is_compiling() else kind_of_call(named, length)
    if kind is not None and kind in host.kinds:
        return host.kinds[kind]
    reason = refusal(block, named, length, host.hiding)
    if reason is not None:
        raise ValueError(_refused(host, block, reason))
    hides = is_causal(block, named)
    if kind is not None:
        host.kinds[kind] = hides
    return hides


def _refused(host: Host, block: nn.Module, reason: str) -> str:
    return (
        f"expand: block {host.name!r} ({type(block).__name__}) takes no task tokens: {reason}. Or plan modulation there: "
        "report.plan(expansion=False)."
    )


def _check_they_are_seen(host: Host, block: nn.Module, call: BlockCall, count: int) -> None:
    if "task tokens" in host.tried or torch.compiler.is_compiling():
        return
    shown = shows_its_end(block, call, count)
    if shown is False:
        why = "earlier positions do not see later ones, whatever mask it is given"
        raise ValueError(_refused(host, block, why))
    if shown:
        host.tried.add("task tokens")


def _tell_positions(block: nn.Module, call: BlockCall, *, hides_later: bool) -> BlockCall:
    """The call with the mask and the biases of positions that the block, told none, would make from the length."""
    named, length = call.named(), call.length
    assert length is not None
    mask = mask_argument(tuple(named)) if hides_later else None
    if mask is not None and named[mask] is None:
        call = call.with_argument(mask, causal_mask(length, call.tokens))
    wanted = "position_bias" in named and named["position_bias"] is None
    bias = position_bias_of(block) if wanted else None
    return call if bias is None else call.with_argument("position_bias", bias(length, length))
