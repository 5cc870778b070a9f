"""What a block returns: a tensor, or tensors inside tuples, lists, dictionaries, dict-like objects and data classes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dtme._pytree import tensors_of

_TOKENS = re.compile(r"token|hidden|feature|^x$", re.IGNORECASE)


def tokens_of(output: Any, like: Tensor, block: str) -> Tensor:
    """The tokens in a block's output: the first tensor of the shape of those that entered, else the first tensor.

    Among entries with names, those called tokens, features or hidden states come first: a matrix of attention weights
    has the shape of the tokens where there are as many positions as channels.

    Raises:
        ValueError: There is no tensor in it; the message names the `block`.
    """
    entries = dict(vars(output)) if dataclasses.is_dataclass(output) else output
    named = [value for name, value in entries.items() if _TOKENS.search(name)] if isinstance(entries, Mapping) else []
    found = [*tensors_of(named), *tensors_of(output)]
    if not found:
        raise ValueError(
            f"block {block!r} returned {type(output).__name__}, in which no tensor is found: return a tensor, or tensors "
            "in a tuple, a list, a dictionary or a data class."
        )
    return next((tensor for tensor in found if tensor.shape == like.shape), found[0])
