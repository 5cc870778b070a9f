"""Which arguments of a block's call hold a row per sample and so follow the tokens.

Decided by rule, never by a size alone where two readings are possible (a batch of N samples of N tokens).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from dtme.streams.tensor import Streams

_TABLE = re.compile(r"rope|rotary|freq|pos|(^|_)(cos|sin|rel|relative)(_|$)", re.IGNORECASE)
"""Names of tables over positions, which hold no row per sample unless they have a third dimension for it."""
_SHARED = re.compile(r"bias|cache", re.IGNORECASE)
"""Names, besides those of positions, of what all samples share where its size does not speak against it."""


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
        return shape[0] % max(samples, 1) == 0 and (shape[0] > 1 or samples == 1)
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


def is_told_by_name(name: str) -> bool:
    """Whether the name of an argument as long as the batch says what it is: libraries keep to it."""
    return (
        bool(_TABLE.search(name))
        or "padding" in name
        or name == "attention_mask"
        or name.endswith(("ids", "hidden_states"))
    )


def is_one_for_all(argument: Streams, samples: int) -> bool:
    """Whether an argument made from streams by their shape or type alone (`new_ones`) is the same in all of them."""
    if torch.compiler.is_compiling() or tuple(argument.shape[:1]) == (samples,):
        return False
    first, *others = argument._streams
    return all(torch.equal(first, other) for other in others)


def first_dim(name: str, argument: Streams, samples: int) -> int:
    """The dimension of the rows of an argument that differs between streams.

    Raises:
        ValueError: It has none.
    """
    if argument.ndim and argument.shape[0] % max(samples, 1) == 0:
        return 0
    raise ValueError(
        f"its argument {name!r} {tuple(argument.shape)} differs between the tasks but has no row for each of its {samples} "
        "samples, so that streams cannot share a batch."
    )
