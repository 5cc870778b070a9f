"""FLOPs of parts of a block, and of what the block does with their output: where streams part inside of it, these are paid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dtme.adaptation import Linear, linear_layers
from dtme.arguments import Call, argument_names, take, tokens_key, with_own_caches
from dtme.block_flops import BlockFlops, Counted, count_block
from dtme.insert import runs_last
from dtme.layout import layout_of
from dtme.outputs import map_tensors, tensors_of
from dtme.products import Products, plain_products
from dtme.streams import Streams
from dtme.streams import part as split
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


def late_part(block: nn.Module) -> str | None:
    """The outermost module of a block that holds its last two linear layers or more, but not all of its matrices: the MLP.

    Returns:
        Its name in the block; `None` where there is no such module, as where the layers of the MLP are members of the block.

    Example:
        >>> late_part(nn.ModuleDict({"convolution": nn.Linear(4, 4), "attention": nn.MultiheadAttention(4, 2)}))
        'attention'
        >>> print(late_part(nn.TransformerEncoderLayer(4, 2)))
        None
    """
    matrices = sum(weight.ndim > 1 for weight in block.parameters())
    for name, part in block.named_modules():
        own = sum(weight.ndim > 1 for weight in part.parameters())
        takes_inserts = type(part).forward is not nn.Module.forward and not isinstance(part, nn.Sequential)
        if name and takes_inserts and own < matrices and runs_last(name, block) and len(_linear_layers_of(part)) > 1:
            return name
    return None


def takes_streams_behind(module: nn.Module, block: nn.Module, call: Call) -> bool:
    """Whether a block takes streams for what they are behind a part of it: it is run with two copies of the part's output.

    Raises:
        Exception: Something in the block takes no streams, a sum in place say.
    """

    def two(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        tokens: Tensor = take(args, kwargs, tokens_key(args, kwargs, argument_names(part)))
        batch = layout_of(part, tokens).batch

        def parted(tensor: Tensor) -> Tensor:
            if tensor.ndim <= batch or tensor.shape[batch] != tokens.shape[batch] or not tensor.is_floating_point():
                return tensor
            return split(torch.cat([tensor, tensor], batch).requires_grad_(), (("first",), ("second",)), batch)

        return map_tensors(output, parted)

    args, kwargs = with_own_caches(call)
    with module.register_forward_hook(two, with_kwargs=True), torch.enable_grad():
        output = block.forward(*args, **kwargs)
    return any(isinstance(tensor, Streams) and hasattr(tensor, "_streams") for tensor in tensors_of(output))


def _linear_layers_of(part: nn.Module) -> dict[str, Linear]:
    try:
        return linear_layers(part)
    except ValueError:  # an attention that takes no updates
        return {}


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
