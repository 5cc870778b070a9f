"""What a plan does to one task, done to the unmodified model by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import dtme
from dtme.inserts.insert import layer_key
from dtme.trunk.linear_layers import linear_layers
from zoo import Entry, adaptation, expansion, modulation


def modulated(base: nn.Module, applied: nn.Module, plan: dtme.Plan, task: str) -> nn.Module:
    """The base with each tensor that enters a block scaled and shifted for one task."""
    alone = copy.deepcopy(base)
    for block, tasks in plan.modulate.items():
        if task in tasks:
            insert: Any = applied.get_submodule(block).dtme
            scale, shift = (vector[tuple(tasks).index(task)] for vector in (insert.scale, insert.shift))

            def change(_: nn.Module, args: Any, kwargs: Any, scale: Tensor = scale, shift: Tensor = shift) -> Any:
                key = next(name for name in ("tokens", "hidden_states", "x", "src") if args or name in kwargs)
                tokens = args[0] if args else kwargs[key]
                first = tokens.ndim == 4 and tokens.shape[1] == len(scale)
                form = (-1, 1, 1) if first else (-1,)
                tokens = tokens * scale.view(form) + shift.view(form)
                return ((tokens, *args[1:]), kwargs) if args else (args, {**kwargs, key: tokens})

            alone.get_submodule(block).register_forward_pre_hook(change, with_kwargs=True)
    return alone


def expanded(base: nn.Module, applied: nn.Module, plan: dtme.Plan, task: str) -> nn.Module:
    """The base with one task's tokens before the others, among those that a rotary attention leaves unturned."""
    alone = copy.deepcopy(base)
    for block, tasks in plan.expand.items():
        if task not in tasks:
            continue
        module: Any = alone.get_submodule(block)
        own: Any = applied.get_submodule(block).dtme.tokens[tuple(tasks).index(task)]
        dim = 1 - int(any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in module.modules()))
        if hasattr(getattr(module, "attn", None), "num_prefix_tokens"):
            module.attn.num_prefix_tokens += len(own)
        if getattr(getattr(module, "attn", None), "relative_position_bias_table", None) is not None:
            bias = module.attn._get_rel_pos_bias()
            module.attn._get_rel_pos_bias = partial(nn.functional.pad, bias, (len(own), 0, len(own), 0))
        module.forward = partial(_with_tokens_in_front, module.forward, own, dim)
    return alone


def _with_tokens_in_front(forward: Callable[..., Any], own: Tensor, dim: int, *args: Any, **kwargs: Any) -> Any:
    tokens = args[0] if args else kwargs.pop("tokens")
    extra = own.unsqueeze(1 - dim).expand(*(tokens.shape[0], -1, -1) if dim == 1 else (-1, tokens.shape[1], -1))
    if kwargs.get("shared_rel_pos_bias") is not None:
        kwargs["shared_rel_pos_bias"] = nn.functional.pad(kwargs["shared_rel_pos_bias"], (len(own), 0, len(own), 0))
    output = forward(torch.cat([extra, tokens], dim), *args[1:], **kwargs)
    cut = partial(torch.narrow, dim=dim, start=len(own), length=tokens.shape[dim])
    if isinstance(output, Tensor):
        return cut(output)
    if isinstance(output, tuple):
        return cut(output[0]), output[1]
    output = copy.copy(output)
    output.__setitem__("tokens", cut(output["tokens"])) if isinstance(output, dict) else setattr(
        output, "tokens", cut(output.tokens)
    )
    return output


def adapted(base: nn.Module, applied: nn.Module, plan: dtme.Plan, task: str) -> nn.Module:
    """The base with the updates of one task added to its weights."""
    alone = copy.deepcopy(base)
    for block, tasks in plan.adapt.items():
        layers = linear_layers(alone.get_submodule(block), plan.adapt_layers) if task in tasks else {}
        for layer, linear in layers.items():
            assert linear.in_features > 2  # coordinates are no tokens
            own: Any = applied.get_submodule(block).dtme.low_rank[layer_key(layer)]
            row = tuple(tasks).index(task)
            linear.weight.data += (own.up[row] @ own.down[row]).detach()
    return alone


BY_HAND: dict[Callable[[Entry], dtme.Plan], Callable[..., nn.Module]] = {
    modulation: modulated,
    expansion: expanded,
    adaptation: adapted,
}
