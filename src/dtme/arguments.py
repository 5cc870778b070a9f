"""The other arguments of a block: which of them hold a row per sample, and so follow the tokens into streams.

Decided by rule, never by a size alone where two readings are possible (a batch of N samples of N tokens).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dtme.streams import Streams

Call = tuple[tuple[Any, ...], dict[str, Any]]

_POSITIONAL = re.compile(r"rope|rotary|pos|freq|cos|sin|bias|cache", re.IGNORECASE)
_TABLE = re.compile(r"rope|rotary|freq|pos|(^|_)(cos|sin|rel)(_|$)", re.IGNORECASE)
"""Names of tables over positions, which hold no row per sample unless they have a third dimension for it."""


def argument_names(block: nn.Module) -> tuple[str, ...]:
    """What a block calls its positional arguments."""
    return tuple(inspect.signature(block.forward).parameters)


def has_rows(name: str, value: Tensor, samples: int, length: int | None) -> bool:
    """Whether an argument has a row per sample, or a fixed number of rows per sample (attention heads).

    Args:
        name: What the block calls the argument.
        value: The argument.
        samples: Samples in the batch.
        length: Tokens of a sample.

    A square matrix over the positions is a table shared by all samples (`src_mask`, a causal mask), unless its name
    says that it pads; a table named after positions (rotary angles, biases) is shared where it has two dimensions, or
    a matrix per attention head. Indices of positions (`position_ids`) come per sample.

    Example:
        >>> import torch
        >>> square = torch.zeros(4, 4)
        >>> has_rows("src_mask", square, samples=4, length=4), has_rows("src_key_padding_mask", square, 4, 4)
        (False, True)
    """
    if value.ndim == 0:
        return False
    if _TABLE.search(name) and not name.endswith("ids"):
        if value.ndim < 3:
            return False
        if value.ndim == 3 and name.startswith("rope"):  # a table per attention head
            return False
        if value.ndim == 3 and "embed" in name:  # rotary angles, which may be as wide as the sequence is long
            return value.shape[0] == samples
    if value.ndim == 3 and length is not None and value.shape[1:] == (length, length):
        return "pos" not in name and ((value.shape[0] % samples == 0 and value.shape[0] > 1) or samples == 1)
    if value.shape[0] != samples:
        return False
    if value.ndim == 2 and samples == length:
        if "padding" in name or name == "attention_mask" or name.endswith("ids"):
            return True
        return value.shape[1] != length and not _POSITIONAL.search(name)
    return True


def change_rows(
    call: Call,
    names: tuple[str, ...],
    samples: int,
    length: int | None,
    change: Callable[[Tensor], Tensor],
    tokens: int | str,
) -> Call:
    """A block's call with `change` applied to every argument, the tokens excepted, that has a row per sample."""

    def changed(name: str, value: Any) -> Any:
        def leaf_changed(leaf: Any) -> Any:
            follows = isinstance(leaf, Streams) or (isinstance(leaf, Tensor) and has_rows(name, leaf, samples, length))
            return change(leaf) if follows else leaf

        return pytree.tree_map(leaf_changed, value) if not isinstance(value, Tensor) else leaf_changed(value)

    args, kwargs = call
    return (
        tuple(v if i == tokens else changed(names[i] if i < len(names) else "", v) for i, v in enumerate(args)),
        {name: v if name == tokens else changed(name, v) for name, v in kwargs.items()},
    )
