"""Folding: one batch that holds all streams, one after another, and streams made of one."""

from __future__ import annotations

import torch
from torch import Tensor

from dtme.streams.groups import Groups
from dtme.streams.tensor import Streams, gather, stream_of


def part(folded: Tensor, groups: Groups, dim: int) -> Streams:
    """Streams out of a batch that holds them one after another along `dim`."""
    apart = folded.unflatten(dim, (len(groups), folded.shape[dim] // len(groups))).unbind(dim)
    return gather(apart, groups, (dim, folded))


def groups_of(tokens: Tensor, tasks: tuple[str, ...]) -> Groups:
    """Which tasks share which stream: all one, before streams part."""
    return tokens._groups if isinstance(tokens, Streams) else (tasks,)


def fold(tokens: Tensor, groups: Groups, dim: int) -> Tensor:
    """One batch that holds the tokens of every group, one group after another along `dim`."""
    if not isinstance(tokens, Streams):
        if len(groups) == 1:
            return tokens
        return tokens.repeat(*(len(groups) if axis == dim else 1 for axis in range(tokens.ndim)))
    if tokens._folded is not None and tokens._folded[0] == dim and tokens._groups == groups:
        return tokens._folded[1]
    return torch.cat([stream_of(tokens, group[0]) for group in groups], dim)
