"""FLOPs of parts of a block, and of what the block does with their output: where streams part inside of it, these are paid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dtme.arguments import Call, with_own_caches
from dtme.block_flops import BlockFlops, Counted, count_block
from dtme.insert import runs_last
from dtme.products import Products, plain_products
from dtme.trail import Trail


def count_parts(
    outer: str, parts: Mapping[str, nn.Module], block: nn.Module, call: Call, flops: Counted, adapt_layers: str | None
) -> dict[str, BlockFlops]:
    """Count parts of a block that is about to run, in a run of its own for each.

    Args:
        outer: The block's name.
        parts: By name.
        block: Without insert.
        call: The arguments it is called with.
        flops: Counts a run.
        adapt_layers: Which linear layers of the parts get low-rank updates, as in `Plan`.

    Raises:
        ValueError: A part does not run once in the block, or lies in another.
    """
    found = {}
    for name, part in parts.items():
        around = [other for other in parts if name.startswith(f"{other}.")]
        if around:
            raise ValueError(f"{name!r} lies in {around[0]!r}, which has inserts as well, and is not counted by itself")
        counted = _count(name, part, block, call, flops, adapt_layers)
        found[name] = replace(counted, last=runs_last(name.removeprefix(f"{outer}."), block))
    return found


def _count(
    name: str, part: nn.Module, block: nn.Module, call: Call, flops: Counted, adapt_layers: str | None
) -> BlockFlops:
    runs: list[BlockFlops] = []
    trail, behind, running = Trail(), 0, False

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal running
        running = True
        runs.append(count_block(name, module, (args, kwargs), flops, adapt_layers))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal running
        running = False
        trail.mark(output)

    def told(count: int, inputs: Any, output: Any) -> None:
        nonlocal behind
        if not running and trail.follow(inputs, output):
            behind += count

    args, kwargs = with_own_caches(call)
    handles = [part.register_forward_pre_hook(enter, with_kwargs=True), part.register_forward_hook(leave)]
    try:
        with torch.no_grad(), plain_products(), Products(told):
            block.forward(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if len(runs) != 1:
        raise ValueError(f"{name!r} runs {len(runs)} times in it, and can be priced where it runs once")
    return replace(runs[0], behind=behind)
