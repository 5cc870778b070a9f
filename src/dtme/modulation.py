"""Token modulation (Sec. 4.3): at a block's entry each task scales and shifts every channel of its own tokens.

    T <- W_i * T + b_i,    W_i, b_i in R^p,    W_i = 1 and b_i = 0 at the start

so that inserting modulators changes nothing until they are trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dtme._shapes import Float


def modulate(
    tokens: Float[Tensor, "*#batch p"], scale: Float[Tensor, "*#batch p"], shift: Float[Tensor, "*#batch p"]
) -> Float[Tensor, "*stretched p"]:
    """`scale * tokens + shift`, computed in the wider type of the two and rounded once to the tokens' own.

    Example:
        >>> modulate(torch.ones(1, 2), torch.tensor([2.0, 3.0]), torch.tensor([0.0, -1.0])).tolist()
        [[2.0, 2.0]]
    """
    return torch.addcmul(shift, tokens, scale).to(tokens.dtype)  # one pass over the tokens


class TokenStatistics(nn.Module):
    """Per-task batch normalisation of tokens, the modulator of the paper's Tab. 11 (the affine part follows it).

    In training the tokens of a task are normalised, channel by channel, by their own mean and variance over samples and
    positions; in evaluation by the running ones. Unlike the affine modulator this is no identity at the start.

    Attributes:
        mean: Running mean per task and channel.
        variance: Running variance per task and channel.
    """

    mean: Float[Tensor, "tasks p"]
    variance: Float[Tensor, "tasks p"]

    def __init__(self, tasks: int, width: int, *, like: Tensor, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", like.new_zeros(tasks, width))
        self.register_buffer("variance", like.new_ones(tasks, width))

    def forward(self, tokens: Float[Tensor, "*batch p"], task: int) -> Float[Tensor, "*batch p"]:
        """The tokens of one task, normalised; `task` is its row in the buffers."""
        flat = tokens.flatten(0, -2)
        normed = nn.functional.batch_norm(
            flat, self.mean[task], self.variance[task], training=self.training and len(flat) > 1, momentum=self.momentum
        )
        return normed.view(tokens.shape).to(tokens.dtype)
