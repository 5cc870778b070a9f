"""Token expansion (Sec. 4.3, App. B.3): learnable task tokens join the sequence before a block and leave it after.

Task tokens carry no position and every position of their stream sees them, whatever mask the block is given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from dtme.blocks import Layout


def append(tokens: Tensor, extra: Float[Tensor, "samples n p"], layout: Layout) -> Tensor:
    """The sequence with each sample's task tokens at its end."""
    assert layout.token is not None
    return torch.cat([tokens, extra.movedim(0, layout.batch).to(tokens.dtype)], layout.token)


def drop(tokens: Tensor, count: int, layout: Layout) -> Tensor:
    """The sequence without the `count` task tokens at its end."""
    assert layout.token is not None
    return tokens.narrow(layout.token, 0, tokens.shape[layout.token] - count)


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
    named = not name or "mask" in name or "bias" in name
    return named and isinstance(value, Tensor) and value.ndim >= 2 and value.shape[-1] == length


def initial_tokens(tasks: int, count: int, like: Tensor, width: int) -> Float[Tensor, "tasks count p"]:
    """Small normal values, as vision transformers start their class token (standard deviation 0.02)."""
    return like.new_empty(tasks, count, width).normal_(0.0, 0.02)
