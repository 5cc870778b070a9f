"""Adaptation (ours, not the paper's): low-rank updates of a block's linear layers, one per task, in the streams.

    y = W x + b + B_i A_i x,    A_i in R^(rank x in), B_i in R^(out x rank), B_i = 0 at the start

Every row of a linear layer's input belongs to one lane of the pass, a stream or a sample; one batched product serves all.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from dtme._shapes import Float

_OF_POSITIONS = re.compile(r"cpb|rel_pos|(^|[._])pos(ition)?s?[._]", re.IGNORECASE)
"""Layers that turn relative coordinates into biases: they take a table that all samples share, and no tokens."""


class LowRank(nn.Module):
    """The low-rank updates of one linear layer, stacked over the tasks that have one.

    Attributes:
        down: `A`, uniform at the start as a linear layer's weight is.
        up: `B`, zero at the start.
    """

    down: Float[Tensor, "tasks rank inputs"]
    up: Float[Tensor, "tasks outputs rank"]

    def __init__(self, tasks: int, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(linear.in_features)
        like = linear.weight.detach()
        self.down = nn.Parameter(like.new_empty(tasks, rank, linear.in_features).uniform_(-bound, bound))
        self.up = nn.Parameter(like.new_zeros(tasks, linear.out_features, rank))


def low_rank_update(
    inputs: Tensor,
    outputs: Tensor,
    down: Float[Tensor, "lanes rank inputs"],
    up: Float[Tensor, "lanes outputs rank"],
    dim: int,
) -> Tensor:
    """The outputs of a linear layer with each lane's `B A x` added; lanes lie one after another along `dim`.

    Example:
        >>> x, y = torch.ones(2, 3, 4), torch.zeros(2, 3, 1)
        >>> low_rank_update(x, y, torch.ones(2, 1, 4), torch.tensor([1.0, 10.0]).view(2, 1, 1), dim=0)[:, 0, 0].tolist()
        [4.0, 40.0]
    """
    lanes = len(down)
    rows = inputs.movedim(dim, 0)
    update = torch.bmm(torch.bmm(rows.reshape(lanes, -1, rows.shape[-1]), down.mT), up.mT)
    return outputs + update.reshape(*rows.shape[:-1], -1).movedim(0, dim).to(outputs.dtype)


def linear_layers(block: nn.Module, pattern: str | None = None) -> dict[str, nn.Linear]:
    """The linear layers of a block that run as modules, by their name in it.

    `nn.MultiheadAttention` uses its weights without calling its layers, so that nothing can be added to them by row; a
    layer that computes position biases has no row per sample.

    Args:
        block: A block, without insert or with one.
        pattern: A regular expression matched against the whole name; `None` takes all.

    Example:
        >>> list(linear_layers(nn.TransformerEncoderLayer(8, 2)))
        ['linear1', 'linear2']
    """
    within_attention = tuple(f"{name}." for name, m in block.named_modules() if isinstance(m, nn.MultiheadAttention))
    return {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
        and not (within_attention and name.startswith(within_attention))
        and not name.startswith("dtme.")
        and not _OF_POSITIONS.search(name)
        and (pattern is None or re.fullmatch(pattern, name))
    }
