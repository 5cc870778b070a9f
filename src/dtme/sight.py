"""Which positions of a block see which, found by trying it on tokens that are changed in a part.

How a block's code is written says little about what it hides: causality may be a constant in it, and samples may lie in
either dimension. A twin of the block, with its parameters but without hooks, runs on the tokens as they are and on tokens
changed at some indices; where the output differs, those were seen.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Bool
from dtme.arguments import Call, exchange, take, with_own_caches
from dtme.layout import Layout
from dtme.outputs import tokens_of

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_ROUNDING = 1e-5
"""Of the largest difference: experts, say, compute the same rows in groups of another size."""


def seeing(block: nn.Module, call: Call, key: int | str, dim: int, changed: slice) -> Bool[Tensor, " n"] | None:
    """At which indices along a dimension a block's output depends on what enters at the `changed` ones.

    Args:
        block: Any block; it is left as it is, and so is the state of the random numbers.
        call: What it is called with.
        key: Where in the call its tokens are.
        dim: Which dimension of the tokens.
        changed: Which indices.

    Returns:
        A truth value per index, or `None` where trying is not possible: parameters that are sharded, tokens without values,
        a call whose operations are watched or that fails, an output of another length.

    Example:
        >>> layer, x = nn.TransformerEncoderLayer(8, 2, batch_first=True), torch.randn(3, 4, 8)
        >>> seeing(layer, ((x,), {}), 0, 0, slice(0, 1)).tolist(), seeing(layer, ((x,), {}), 0, 1, slice(0, 1)).tolist()
        ([True, False, False], [True, True, True, True])
    """
    tokens: Tensor = take(*call, key)
    if torch._C._len_torch_dispatch_stack() or tokens.is_meta or any(_is_sharded(p) for p in block.parameters()):
        return None
    caches = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # weights cast here, without gradients, must not serve the pass itself
    try:
        with torch.no_grad():
            twin = _twin(block, {})
            before, after = (_run(twin, exchange(call, tokens, t), t) for t in (tokens, _changed(tokens, dim, changed)))
    except Exception:  # whatever the block raises: its own call will raise it likewise, and be heard
        return None
    finally:
        torch.set_autocast_cache_enabled(caches)
    if before.shape != after.shape or before.ndim != tokens.ndim or before.shape[dim] != tokens.shape[dim]:
        return None
    moved = (after - before).abs().nan_to_num(0.0, 0.0).movedim(dim, 0).flatten(1).amax(1)
    return moved > _ROUNDING * moved.max()


def shows_its_end(block: nn.Module, call: Call, key: int | str, layout: Layout, count: int) -> bool | None:
    """Whether the last `count` positions of a block's tokens, task tokens, are seen by those in the first half.

    Args:
        block: Any block.
        call: What it is called with, task tokens included.
        key: Where in the call its tokens are.
        layout: Where in the tokens the positions are.
        count: Task tokens at the end.

    Returns:
        False only where the first positions see none of them and are themselves seen by others: where nothing sees anything,
        as while a projection is zero, there is no saying. `None` where `seeing` cannot tell.
    """
    assert layout.token is not None
    length = take(*call, key).shape[layout.token] - count
    half = max(length // 2, 1)
    seen = seeing(block, call, key, layout.token, slice(length, length + count))
    if seen is None or bool(seen[:half].any()):
        return None if seen is None else True
    first = seeing(block, call, key, layout.token, slice(0, half))
    return None if first is None else not bool(first[half:].any())


def _is_sharded(parameter: Tensor) -> bool:
    return type(parameter) is not nn.Parameter


def _twin(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """The same module in evaluation and without hooks: it holds the same tensors, and what it sets on itself is its own."""
    if module not in made:
        made[module] = twin = object.__new__(type(module))
        twin.__dict__ = {**module.__dict__, "training": False, **{hooks: OrderedDict() for hooks in _HOOKS}}
        forward: Any = twin.__dict__.get("forward")
        if getattr(forward, "branches", False):  # of a block with copies, which would lead back to the block
            del twin.__dict__["forward"]
            if forward.before is not None:
                twin.__dict__["forward"] = forward.before
        twin.__dict__["_modules"] = {
            name: child if child is None else _twin(child, made) for name, child in module._modules.items()
        }
        for own in ("_parameters", "_buffers"):
            twin.__dict__[own] = dict(module.__dict__[own])
    return made[module]


def _changed(tokens: Tensor, dim: int, changed: slice) -> Tensor:
    """The tokens with others of their size at some indices, which no norm over the channels makes the same again."""
    rows = tokens.detach().clone()
    part = rows.narrow(dim, *_bounds(changed, rows.shape[dim]))
    size = tokens.detach().abs().mean().clamp(min=1e-3)
    part.copy_(size * torch.linspace(2, -1, part.shape[-1], device=part.device).to(part.dtype).square() - part)
    return rows


def _bounds(changed: slice, length: int) -> tuple[int, int]:
    start, stop, _ = changed.indices(length)
    return start, stop - start


def _run(twin: nn.Module, call: Call, tokens: Tensor) -> Tensor:
    devices: list[Any] = [tokens.device] if tokens.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        args, kwargs = with_own_caches(call)
        return tokens_of(twin(*args, **kwargs), tokens, type(twin).__name__)
