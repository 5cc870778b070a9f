"""Masks and matrices over positions: extended for task tokens on the way in, cropped on the way out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dtme._pytree import map_tensors, tensors_of
from dtme._shapes import Float
from dtme.trunk.layout import Layout


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


def causal_mask(length: int, like: Tensor) -> Float[Tensor, "1 1 n n"]:
    """The mask, added to the scores, that causal attention applies when it is given none."""
    return like.new_full((length, length), torch.finfo(like.dtype).min).triu(1).view(1, 1, length, length)


def mask_argument(names: tuple[str, ...]) -> str | None:
    """Which argument of a block is the mask of its self-attention."""
    return next((name for name in names if "mask" in name and not re.search("padding|encoder|cross|head", name)), None)
