"""Token expansion (Sec. 4.3, App. B.3): learnable task tokens join the sequence before a block and leave it after.

Task tokens carry no position and every position of their stream sees them, whatever mask the block is given: what a
block is told about the positions of the sequence is extended here, or the block is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from dtme.layout import Layout
from dtme.outputs import map_tensors, tensors_of
from dtme.position_tables import spanning_tables


def append(tokens: Tensor, extra: Float[Tensor, "samples n p"], layout: Layout) -> Tensor:
    """The sequence with each sample's task tokens at its end."""
    assert layout.token is not None
    return torch.cat([tokens, extra.movedim(0, layout.batch).to(tokens.dtype)], layout.token)


def drop(tokens: Tensor, count: int, layout: Layout) -> Tensor:
    """The sequence without the `count` task tokens at its end."""
    assert layout.token is not None
    return tokens.narrow(layout.token, 0, tokens.shape[layout.token] - count)


def crop(output: Any, whole: Tensor, count: int, layout: Layout, *, meets_as_long: bool = False) -> Any:
    """Of what a block returns beside its tokens `whole`: the matrices over positions (biases, attention) without task tokens.

    Their columns may be positions of another sequence, as in attention to what an encoder has read. Where that is as long
    as the block's own with its task tokens, which `meets_as_long` says, the second half of the matrices is of that kind: a
    block attends to its own sequence first.
    """
    assert layout.token is not None
    length = whole.shape[layout.token]
    square = [t for t in tensors_of(output) if t.ndim == 4 and t.shape[-2:] == (length, length)]
    own = square[: len(square) // 2] if meets_as_long else square

    def cropped(tensor: Tensor) -> Tensor:
        if tensor.ndim != 4 or tensor.shape[-2] != length:
            return tensor
        rows = tensor[..., : length - count, :]
        return rows[..., : length - count] if any(tensor is matrix for matrix in own) else rows

    return map_tensors(output, cropped)


def meets_another(named: Mapping[str, Any], length: int, layout: Layout) -> bool:
    """Whether a block is given another sequence of so many positions, an encoder's say."""
    assert layout.token is not None
    return any(
        re.search("memory|encoder|cross", name) and isinstance(value, Tensor) and value.ndim == 3
        and value.shape[layout.token] == length
        for name, value in named.items()
    )  # fmt: skip


def extend_mask(mask: Tensor, length: int, count: int, *, true_hides: bool, by_sample: bool = False) -> Tensor:
    """An attention or padding mask that lets `count` more positions, at the end, see and be seen.

    Args:
        mask: Last dimension: the positions attended to. The one before it: the positions that attend, where it is as
            long as the sequence; a mask whose rows broadcast keeps them.
        length: Positions of the sequence before expansion.
        count: Task tokens added.
        true_hides: What `True` means in a mask of booleans; other masks are added to the scores, or keep where 1.
        by_sample: The rows stand for samples, as in a padding mask, and not for positions.

    Example:
        >>> causal = torch.full((2, 2), -torch.inf).triu(1)
        >>> extend_mask(causal, 2, 1, true_hides=True)
        tensor([[0., -inf, 0.],
                [0., 0., 0.],
                [0., 0., 0.]])
    """
    if mask.dtype == torch.bool:
        visible: float = not true_hides
    else:
        visible = 0.0 if torch.is_floating_point(mask) else 1
    mask = nn.functional.pad(mask, (0, count), value=visible)
    if not by_sample and mask.shape[-2] == length:
        mask = nn.functional.pad(mask, (0, 0, 0, count), value=visible)
    return mask


def is_mask(name: str, value: Any, length: int) -> bool:
    """Whether an argument of a block is a mask or bias over the positions of the sequence, by its name and its size."""
    named = not name or (re.search("mask|bias|alibi", name) and not re.search("memory|encoder|cross", name))
    return bool(named) and isinstance(value, Tensor) and value.ndim >= 2 and value.shape[-1] == length


def extend_rows(mask: Tensor, count: int) -> Tensor:
    """A mask over another sequence, with the rows of `count` more positions, which see of it what the last one sees.

    Example:
        >>> extend_rows(torch.tensor([[True, False]]), 1).tolist()
        [[True, False], [True, False]]
    """
    return torch.cat([mask, mask[..., -1:, :].expand(*mask.shape[:-2], count, -1)], -2)


def is_mask_over_others(name: str, value: Any, length: int) -> bool:
    """Whether an argument of a block says which positions of another sequence each of its own attends to."""
    if not (isinstance(value, Tensor) and re.search("mask|bias", name) and re.search("memory|encoder|cross", name)):
        return False
    return value.ndim > (1 if name == "memory_mask" else 2) and value.shape[-2] == length


def is_causal(block: nn.Module, named: Mapping[str, Any]) -> bool:
    """Whether a block hides later positions by itself: it is told so in this call, or its attention says so of itself."""
    if any(isinstance(inner, nn.MultiheadAttention) for inner in block.modules()):
        return False  # takes `is_causal` as a hint about a mask that it is given besides
    told = named.get("is_causal")
    return bool(told) if told is not None else any(getattr(m, "is_causal", None) is True for m in block.modules())


def causal_mask(length: int, like: Tensor) -> Float[Tensor, "1 1 n n"]:
    """The mask, added to the scores, that causal attention applies when it is given none."""
    return like.new_full((length, length), torch.finfo(like.dtype).min).triu(1).view(1, 1, length, length)


def mask_argument(names: tuple[str, ...]) -> str | None:
    """Which argument of a block is the mask of its self-attention."""
    return next((name for name in names if "mask" in name and not re.search("padding|encoder|cross|head", name)), None)


def position_bias_of(block: nn.Module) -> Callable[[int, int], Tensor] | None:
    """What computes a block's biases of relative positions from a length, where the block can be given them as well."""
    for inner in block.modules():
        compute: Callable[[int, int], Tensor] | None = getattr(inner, "compute_bias", None)
        if compute is not None and getattr(inner, "has_relative_attention_bias", True):
            return compute
    return None


def extend_positions(name: str, value: Any, length: int, count: int) -> Any:
    """A table of positions for a sequence that ends in `count` task tokens, which no rotation moves and no distance parts.

    Rotary angles, a pair (cos, sin), a pair behind each other in one tensor (sin, cos) or complex numbers, get the identity.
    Indices of positions get 0, where rotary angles are the identity; indices of relative positions get 0, no distance.
    What speaks of no position comes back as it is.

    Args:
        name: What the block calls the argument.
        value: The argument.
        length: Positions of the sequence before expansion.
        count: Task tokens added.

    Raises:
        ValueError: The table is of an unknown kind.

    Example:
        >>> cos, sin = extend_positions("position_embeddings", (torch.zeros(1, 3, 2), torch.ones(1, 3, 2)), 3, 1)
        >>> cos[0, -1].tolist(), sin[0, -1].tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    if value is None or not _POSITIONS.search(name):
        return value
    pair = isinstance(value, tuple | list) and len(value) == 2
    if pair and all(isinstance(table, Tensor) and table.ndim >= 2 for table in value):
        return tuple(_with_rows(table, count, neutral) for table, neutral in zip(value, (1.0, 0.0), strict=True))
    if not isinstance(value, Tensor):
        raise ValueError(f"its positions {name!r} come as {type(value).__name__}")
    if not torch.is_floating_point(value) and not torch.is_complex(value):
        square = value.ndim >= 2 and value.shape[-2:] == (length, length) and not name.endswith("ids")
        grows = value.ndim > 0 and value.shape[-1] == length
        return nn.functional.pad(value, (0, count, 0, count) if square else (0, count)) if grows else value
    if value.ndim >= 2 and torch.is_complex(value):
        return _with_rows(value, count, 1.0)
    if value.ndim >= 2 and re.search(r"(^|_)cos(_|$)", name):
        return _with_rows(value, count, 1.0)
    if value.ndim >= 2 and re.search(r"(^|_)sin(_|$)", name):
        return _with_rows(value, count, 0.0)
    if value.ndim >= 2 and re.search(r"rope|rotary|rot_pos|sinusoid", name):
        sin, cos = value.chunk(2, -1)
        return torch.cat([_with_rows(sin, count, 0.0), _with_rows(cos, count, 1.0)], -1)
    if value.ndim == 2 and name.startswith("rel"):
        return value  # a row per distance, looked up by the indices
    raise ValueError(f"its positions {name!r} are a table {tuple(value.shape)} of an unknown kind")


_POSITIONS = re.compile(
    r"rope|rotary|rot_pos|sinusoid|freqs?_cis|(^|_)(cos|sin)(_|$)|position|(^|_)rel_?(pos|embed)|relative_pos"
)


def _with_rows(table: Tensor, count: int, neutral: float) -> Tensor:
    return torch.cat([table, torch.full_like(table[..., :1, :], neutral).expand(*table.shape[:-2], count, -1)], -2)


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
        whole = bool(sizes) and all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
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


def initial_tokens(tasks: int, count: int, like: Tensor, width: int) -> Float[Tensor, "tasks count p"]:
    """Small normal values, as vision transformers start their class token (standard deviation 0.02)."""
    return like.new_empty(tasks, count, width).normal_(0.0, 0.02)
