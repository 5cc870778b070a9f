"""Which blocks take task tokens, in which calls, and why others do not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dtme.inserts.masks import mask_argument
from dtme.inserts.positions import position_bias_of
from dtme.trunk.relative_bias import spanning_tables


def fixed_positions(block: nn.Module) -> str | None:
    """What ties a block to the positions it was built for, so that no task token can join them; `None` where nothing does.

    Convolutions and pooling need the tokens on their grid, a table of relative positions has a row for each pair of
    them (unless it can be widened: `position_tables`), and a window holds as many as it was made for.

    Example:
        >>> fixed_positions(nn.TransformerEncoderLayer(8, 2))
        >>> fixed_positions(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)))
        "Conv2d '0' mixes neighbours on a grid"
    """
    spanning = spanning_tables(block)
    for name, buffer in block.named_buffers():
        if name.rpartition(".")[0] in spanning:
            continue
        pairs = buffer.ndim == 2 and buffer.shape[0] == buffer.shape[1] > 1
        if pairs and not buffer.is_floating_point() and buffer.dtype != torch.bool:
            return f"the table {name!r} numbers the pairs of its {len(buffer)} positions"
    for name, inner in block.named_modules():
        kernel = getattr(inner, "kernel_size", None)
        mixes = max(kernel) > 1 if isinstance(kernel, tuple) else "Pool" in type(inner).__name__
        if mixes and name:
            return f"{type(inner).__name__} {name!r} mixes neighbours on a grid"
        window = getattr(inner, "window_size", None) or getattr(inner, "one_sided_attn_window_size", None)
        if window and name not in spanning:
            what = f"{type(inner).__name__} {name!r}" if name else "it"
            return f"{what} is made for windows of {window} positions"
    return None


def is_causal(block: nn.Module, named: Mapping[str, Any]) -> bool:
    """Whether a block hides later positions by itself: it is told so in this call, or its attention says so of itself."""
    if any(isinstance(inner, nn.MultiheadAttention) for inner in block.modules()):
        return False  # takes `is_causal` as a hint about a mask that it is given besides
    told = named.get("is_causal")
    return bool(told) if told is not None else any(getattr(m, "is_causal", None) is True for m in block.modules())


def kind_of_call(named: Mapping[str, Any], length: int) -> tuple[Any, ...] | None:
    """What `refusal` and `is_causal` depend on besides the block: equal for calls that they answer alike.

    `None` where a mask is given, since they then ask the block for its kind of attention, which may be set anew.

    Example:
        >>> kind_of_call({"x": torch.zeros(2, 5, 8), "is_causal": None}, 5) == kind_of_call({"x": None, "is_causal": None}, 5)
        False
        >>> kind_of_call({"attn_mask": torch.zeros(5, 5)}, 5) is None
        True
    """
    if any("mask" in name and value is not None for name, value in named.items()):
        return None
    return (length, *((name, _kind_of_value(value)) for name, value in named.items()))


def _kind_of_value(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, tuple | list):
        return tuple(_kind_of_value(item) for item in value)
    return type(value)


def refusal(block: nn.Module, named: Mapping[str, Any], length: int, hiding: str | None = None) -> str | None:
    """Why a block cannot take task tokens, where it cannot: attention in windows or pooled, or positions of its own.

    Args:
        block: The block.
        named: The arguments of a call of it, by name.
        length: Positions of the sequence before expansion.
        hiding: From `hiding_buffer`.
    """
    for name, value in named.items():
        sizes = value if isinstance(value, tuple | list) else (value,)
        whole = len(sizes) > 0 and all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
        if whole and _GRID.search(name):
            return f"it is told the grid of its tokens ({name}={value}), where task tokens have no place"
        if ("past_key_value" in name and value is not None) or hasattr(value, "get_seq_length"):
            return (
                f"it keeps keys and values in {name}, where task tokens would stay behind as if they were words: "
                "call the model with use_cache=False, or set model.config.use_cache = False"
            )
        if _STATE.search(name):
            return (
                f"it hands a state from position to position ({name}), and only those behind a task token would see it"
            )
        if "mask" in name and value is not None and not isinstance(value, Tensor | bool):
            return f"its {name} is a {type(value).__name__}, which cannot be extended: choose sdpa or eager attention"
    masked = is_causal(block, named) or any("mask" in name and value is not None for name, value in named.items())
    configs = [getattr(inner, "config", None) for inner in block.modules()]
    windowed = any(isinstance(getattr(inner, "sliding_window", None), int) for inner in block.modules())
    if (masked or windowed) and any("flash" in str(getattr(config, "_attn_implementation", "")) for config in configs):
        limit = "in a window" if windowed else "under a mask"
        return f"flash attention cannot show task tokens to every position {limit}: choose sdpa or eager attention"
    mask = mask_argument(tuple(named))
    if mask is not None and isinstance(named[mask], Tensor) and named[mask].shape[-1] != length:
        return f"its {mask} {tuple(named[mask].shape)} is not over its {length} tokens"
    causal = is_causal(block, named) or any(_CAUSAL.search(type(inner).__name__) for inner in block.modules())
    if causal and mask is None:
        return "its attention is causal and takes no mask by which earlier positions could see task tokens"
    if hiding is not None:
        return f"its buffer {hiding!r} hides later positions from earlier ones, which could not see task tokens"
    spanning = spanning_tables(block)
    held = [n for n, _ in [*block.named_parameters(), *block.named_buffers()] if n.rpartition(".")[0] not in spanning]
    own = next((name for name in held if _OWN_POSITIONS.search(name)), None)
    if own is not None and not ("position_bias" in named and position_bias_of(block) is not None):
        return f"it computes positions of its own ({own}), and task tokens have none"
    return None


_GRID = re.compile(r"^(height|width|[hw]|hw)$|dimensions|resolution|grid|size|shape", re.IGNORECASE)
_OWN_POSITIONS = re.compile(r"((^|[._])rel(ative)?_?(pos|att|coords)|rpb|cpb|attention_bias)[^.]*(\.|$)", re.IGNORECASE)


_STATE = re.compile(r"^(state|states|cache_params|inference_params)$")
_CAUSAL = re.compile(r"causal\w*att", re.IGNORECASE)


def hiding_buffer(block: nn.Module) -> str | None:
    """The name of a buffer of a block that is a causal mask; to be looked for once, as it looks at values."""
    buffers = ((name, buffer) for name, buffer in block.named_buffers() if not buffer.is_meta)
    return next((name for name, buffer in buffers if hides_later(buffer)), None)


def hides_later(table: Tensor) -> bool:
    """Whether a table over pairs of positions is a causal mask: one value above the diagonal, another one on it.

    Example:
        >>> hides_later(torch.ones(1, 3, 3).tril()), hides_later(torch.full((3, 3), -torch.inf).triu(1))
        (True, True)
        >>> hides_later(torch.eye(3))
        False
    """
    if table.ndim < 2 or table.shape[-1] != table.shape[-2] or table.shape[-1] < 3:
        return False
    above = torch.ones(table.shape[-2:], dtype=torch.bool, device=table.device).triu(1)
    hidden, diagonal, before = table[..., above], table.diagonal(dim1=-2, dim2=-1), table.diagonal(-1, -2, -1)
    first = hidden.flatten()[0]
    return bool((hidden == first).all() and (diagonal != first).all() and (before != first).all())
