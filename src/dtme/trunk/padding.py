"""Which tokens are padding: by the masks that a block is given, or by one that the user gives.

Libraries agree on little: True marks padding in masks that are called so and in those of `torch.nn`, the other tokens in
those of most others; floats are added to the scores, or are zeros and ones. A mask that could mean either is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Bool, Shaped
from dtme.streams.tensor import Streams
from dtme.trunk.layout import Layout


def checked_mask(mask: Any) -> Bool[Tensor, "samples tokens"]:
    """A mask of real tokens that a user gives for a batch, as booleans.

    Raises:
        ValueError: It is no tensor of two dimensions, or neither of booleans nor of whole numbers 0 and 1.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        what = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"type {type(mask).__name__}"
        raise ValueError(
            f"token_mask(batch) is of {what}: a tensor (samples, tokens) is wanted, True where a token is real."
        )
    if mask.dtype != torch.bool and (mask.is_floating_point() or not bool(((mask == 0) | (mask == 1)).all())):
        raise ValueError(
            f"token_mask(batch) is of type {mask.dtype}: give booleans, or whole numbers 0 and 1; True and 1 where a token is "
            "real."
        )
    return mask.bool()


def fitting(mask: Tensor, name: str, tokens: Tensor, layout: Layout) -> Bool[Tensor, "samples tokens"]:
    """The mask given for a batch, as the mask of the tokens of a block."""
    samples, length, _ = layout.samples_first(tokens).shape
    if mask.shape != (samples, length):
        remedy = (
            "Mask every token that enters it, in that order: prefix tokens that the model adds are tokens too, "
            "torch.nn.functional.pad(mask, (1, 0), value=True). Blocks whose tokens are pooled need an analysis of their own: "
            "blocks=[...]."
        )
        raise ValueError(
            f"token_mask(batch) has the shape {tuple(mask.shape)}, but {samples} samples of {length} tokens enter block "
            f"{name!r}. {remedy}"
        )
    return mask.to(tokens.device)


def valid_tokens(
    name: str, block: nn.Module, named: Mapping[str, Any], tokens: Tensor, layout: Layout
) -> Bool[Tensor, "samples tokens"] | None:
    """Which tokens are no padding, from the masks a block is given for its own tokens.

    Raises:
        ValueError: A mask has a row per sample, and nothing says whether True is padding or the rest.
    """
    if layout.token is None:
        return None
    size = tokens.shape[layout.batch], tokens.shape[layout.token]
    true_hides = any(isinstance(inner, nn.MultiheadAttention) for inner in block.modules())
    found: list[Tensor] = []
    for argument, mask in named.items():
        plain = isinstance(mask, Tensor) and not isinstance(mask, Streams)
        if not plain or not re.search("mask|padding", argument) or _OF_OTHERS.search(argument):
            continue
        try:
            own = _valid_by(argument, mask, *size, true_hides=true_hides)
        except ValueError as why:
            raise ValueError(f"block {name!r} is given {why}") from None
        found += [] if own is None else [own]
    return torch.stack(found).all(0) if found else None


def _valid_by(
    argument: str, mask: Tensor, samples: int, length: int, *, true_hides: bool
) -> Bool[Tensor, "samples tokens"] | None:
    """Which tokens are no padding by one mask; `None` where it does not speak of samples."""
    if mask.shape == (samples, length):
        if "padding" in argument:
            return ~_marked(mask)
        if argument == "attention_mask":
            return _kept(mask)
        if samples == length:  # a table over positions
            return None
        raise ValueError(
            f"{argument!r}, a mask {tuple(mask.shape)} with a row per sample, and whether it marks padding or the other tokens "
            "is not known. Say so: analyze(..., token_mask=lambda batch: ...), True where a token is real."
        )
    rows = mask.shape[0] if mask.ndim in (3, 4) and mask.shape[-1] == length else 0
    if mask.ndim == 4 and rows == samples:
        return _kept(mask).flatten(1, 2).any(1)
    if mask.ndim == 3 and mask.shape[1] in (1, length) and rows and rows % samples == 0:  # one, or one per head
        return _kept(mask, true_hides=true_hides).unflatten(0, (samples, -1)).flatten(1, 2).any(1)
    return None


_OF_OTHERS = re.compile(r"encoder|memory|cross|head|pos")
"""Masks of other tokens than the block's own, of attention heads, and positions that are masked."""
_NOTHING = -1e4
"""What is added to a score to hide a position, or less: the least that libraries take, and exp of it is zero."""


def _kept(mask: Shaped[Tensor, "..."], *, true_hides: bool = False) -> Bool[Tensor, "..."]:
    """Where an attention mask lets positions be attended to: padding is what none attends to.

    True and 1 keep, unless `true_hides`; other floats are added to the scores.
    """
    if mask.dtype == torch.bool:
        return ~mask if true_hides else mask
    return mask > _NOTHING if mask.is_floating_point() and not _is_indicator(mask) else mask > 0


def _marked(mask: Shaped[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Where a padding mask marks padding: by True and 1, or by what it adds to the scores."""
    added = mask.is_floating_point() and not _is_indicator(mask)
    return mask <= _NOTHING if added else mask.bool()


def _is_indicator(mask: Tensor) -> bool:
    """Whether a mask of floats holds zeros and ones, and not zeros alone, which add nothing to any score."""
    return bool(((mask == 0) | (mask == 1)).all()) and bool((mask == 1).any())
