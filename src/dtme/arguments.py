"""A block's call: where in it the tokens are, and which of the other arguments hold a row per sample and so follow them.

Decided by rule, never by a size alone where two readings are possible (a batch of N samples of N tokens).
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dtme.streams import Streams

Call = tuple[tuple[Any, ...], dict[str, Any]]

_TABLE = re.compile(r"rope|rotary|freq|pos|(^|_)(cos|sin|rel|relative)(_|$)", re.IGNORECASE)
"""Names of tables over positions, which hold no row per sample unless they have a third dimension for it."""
_SHARED = re.compile(r"bias|cache", re.IGNORECASE)
"""Names, besides those of positions, of what all samples share where its size does not speak against it."""


def argument_names(block: nn.Module) -> tuple[str, ...]:
    """What a block calls its positional arguments."""
    return tuple(inspect.signature(block.forward).parameters)


def tokens_key(args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Sequence[str] = ()) -> int | str:
    """Where in a block's call its tokens are: the first floating-point tensor, positional before named.

    Args:
        args: Positional arguments.
        kwargs: Named arguments.
        names: What the block calls its arguments; named ones are looked through in this order, whatever the caller's.

    Raises:
        ValueError: There is none.
    """
    named = [name for name in names if name in kwargs] + [name for name in kwargs if name not in names]
    for place, value in [*enumerate(args), *((name, kwargs[name]) for name in named)]:
        if isinstance(value, Tensor) and torch.is_floating_point(value):
            return place
    raise ValueError("a block was called without a floating-point tensor: no tokens enter it.")


def take(args: tuple[Any, ...], kwargs: Mapping[str, Any], key: int | str) -> Any:
    """The argument at a place of a call."""
    return args[key] if isinstance(key, int) else kwargs[key]


def put(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], key: int | str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with the argument at a place exchanged."""
    if isinstance(key, int):
        return (*args[:key], value, *args[key + 1 :]), dict(kwargs)
    return args, {**kwargs, key: value}


def has_rows(name: str, value: Tensor, samples: int, length: int | None, batch: int = 0) -> bool:
    """Whether an argument has a row per sample, or a fixed number of rows per sample; see `rows_dim`.

    Example:
        >>> import torch
        >>> square = torch.zeros(4, 4)
        >>> has_rows("src_mask", square, samples=4, length=4), has_rows("src_key_padding_mask", square, 4, 4)
        (False, True)
    """
    return rows_dim(name, value, samples, length, batch) is not None


def rows_dim(name: str, value: Tensor, samples: int, length: int | None, batch: int = 0) -> int | None:
    """The dimension in which an argument has a row per sample, or a fixed number of rows per sample; `None` without one.

    Args:
        name: What the block calls the argument.
        value: The argument.
        samples: Samples in the batch.
        length: Tokens of a sample, `None` on a grid.
        batch: The dimension of the samples in the tokens.

    Sizes alone tell nothing where there are as many samples as tokens, heads or channels, so the name decides first:

    - One number is a scale, shared by all samples.
    - Tables over positions (rotary angles, biases, indices that are one row) are shared, unless a dimension before their
      last two holds the samples. A matrix per attention head, `(heads, tokens, tokens)`, is such a table too.
    - A mask in one row is over the tokens; a square mask or bias is over pairs of them (`src_mask`, a causal mask), unless
      its name says that it pads or is `attention_mask`, which libraries give a row per sample.
    - A mask `(rows, tokens, tokens)` has a row per sample, or one per sample and attention head.
    - Where positions come before samples, a sequence of vectors (memory, positions) has its samples in the same dimension,
      and a table over pairs of positions has them behind both.
    """
    if value.ndim == 0 or (value.numel() == 1 and value.ndim == 1 and value.is_floating_point()):
        return None
    mask = "mask" in name
    if batch == 1 and value.ndim == 4 and value.shape[0] == length and value.shape[2] == samples:
        return 2
    if batch == 1 and value.ndim == 3 and not mask and value.shape[1] == samples:
        return None if _TABLE.search(name) and value.shape[0] == 1 else 1
    return 0 if _rows_come_first(name, value, samples, length, mask=mask) else None


def _rows_come_first(name: str, value: Tensor, samples: int, length: int | None, *, mask: bool) -> bool:
    shape = tuple(value.shape)
    square = length is not None and shape[-2:] == (length, length)
    if _TABLE.search(name) and not mask:
        return _has_rows_of_positions(name, shape, samples, length)
    if "head_mask" in name:
        return value.ndim > 3 and shape[0] == samples
    if value.ndim == 3 and shape[-1] == length and (mask or "alibi" in name) and shape[1] in (1, length):
        return shape[0] % samples == 0 and (shape[0] > 1 or samples == 1)
    if shape[0] != samples or (value.ndim < 4 and shape[0] == 1 and _SHARED.search(name)):
        return False
    if mask and value.ndim == 1:
        return samples != length
    if square and value.ndim == 2:
        table = not name or mask or "attn" in name or bool(_SHARED.search(name))
        return not table or "padding" in name or name == "attention_mask" or name.endswith("ids")
    return value.ndim != 2 or samples != length or not _SHARED.search(name)


def _has_rows_of_positions(name: str, shape: tuple[int, ...], samples: int, length: int | None) -> bool:
    if name.endswith("ids"):
        return len(shape) > 1 and shape[0] == samples
    if len(shape) < 3 or shape[0] != samples:
        return False
    if len(shape) == 3 and name.startswith("rope"):  # a table per attention head
        return False
    if len(shape) == 3 and shape[1] == 1 and samples == length:  # a row per position, for samples to come behind it
        return False
    pairs = len(shape) == 3 and shape[1:] == (length, length)
    rotary = "embed" in name or not re.search("pos|rel", name)  # and may be as wide as the sequence is long
    return rotary or not pairs


def exchange(call: Call, tokens: Tensor, others: Tensor) -> Call:
    """A block's call with other tokens, wherever it was given these: some take them as query, as key and as value.

    Example:
        >>> import torch
        >>> x, y = torch.zeros(1), torch.ones(1)
        >>> exchange(((x, x), {"value": x, "scale": y}), x, y)
        ((tensor([1.]), tensor([1.])), {'value': tensor([1.]), 'scale': tensor([1.])})
    """
    args, kwargs = call
    return (
        tuple(others if value is tokens else value for value in args),
        {name: others if value is tokens else value for name, value in kwargs.items()},
    )


def with_own_caches(call: Call) -> Call:
    """The call with copies of the caches of keys and values in it: a run beside the pass adds nothing to the pass's own."""

    def own(value: Any) -> Any:
        return copy.deepcopy(value) if hasattr(value, "get_seq_length") else value

    args, kwargs = call
    return tuple(own(value) for value in args), {name: own(value) for name, value in kwargs.items()}


def change_rows(
    call: Call,
    names: tuple[str, ...],
    samples: int,
    length: int | None,
    change: Callable[..., Tensor],
    tokens: Tensor,
    batch: int = 0,
    known: Sequence[tuple[Tensor, int | None]] = (),
) -> Call:
    """A block's call with `change(argument, dim=...)` for every argument, the tokens excepted, that has rows in `dim`.

    Of those that are `known` it is said where that is, `None` for nowhere; of others it is read off their sizes.

    Raises:
        ValueError: An argument differs between streams and has no row per sample.
    """

    def changed(name: str, value: Any) -> Any:
        def leaf_changed(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf is tokens:
                return leaf
            for other, place in known:
                if other is leaf:
                    return leaf if place is None else change(leaf, dim=place)
            dim = rows_dim(name, leaf, samples, length, batch)
            if dim is None and isinstance(leaf, Streams):
                if _is_one_for_all(leaf, samples):
                    return leaf._streams[0]
                dim = _first_dim(name, leaf, samples)
            return leaf if dim is None else change(leaf, dim=dim)

        return pytree.tree_map(leaf_changed, value) if not isinstance(value, Tensor) else leaf_changed(value)

    args, kwargs = call
    return (
        tuple(changed(names[i] if i < len(names) else "", v) for i, v in enumerate(args)),
        {name: changed(name, v) for name, v in kwargs.items()},
    )


def _is_one_for_all(argument: Streams, samples: int) -> bool:
    """Whether an argument made from streams by their shape or type alone (`new_ones`) is the same in all of them."""
    if torch.compiler.is_compiling() or tuple(argument.shape[:1]) == (samples,):
        return False
    first, *others = argument._streams
    return all(torch.equal(first, other) for other in others)


def _first_dim(name: str, argument: Streams, samples: int) -> int:
    if argument.ndim and argument.shape[0] % samples == 0:
        return 0
    raise ValueError(
        f"its argument {name!r} {tuple(argument.shape)} differs between the tasks but has no row for each of its {samples} "
        "samples, so that streams cannot share a batch."
    )
