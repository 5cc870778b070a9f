"""What a block is told of positions, extended by task tokens, which carry none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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
