"""Token modulation (Sec. 4.3): at a block's entry each task scales and shifts every channel of its own tokens.

    T <- W_i * T + b_i,    W_i, b_i in R^p,    W_i = 1 and b_i = 0 at the start

so that inserting modulators changes nothing until they are trained. What is trained, and saved under `scale`, is W_i - 1:
weight decay draws parameters to zero, and whoever builds an optimizer by the usual rules, which look at shapes and names,
would draw W_i there, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from dtme.inserts.call_state import CallState
from dtme.streams.folding import fold
from dtme.streams.lanes import Places, rows_of, unfold_lanes
from dtme.streams.tensor import Streams
from dtme.trunk.layout import Layout


def modulate(
    tokens: Float[Tensor, "*#batch p"], scale: Float[Tensor, "*#batch p"], shift: Float[Tensor, "*#batch p"]
) -> Float[Tensor, "*stretched p"]:
    """`scale * tokens + shift`, computed in the wider type of the two and rounded once to the tokens' own.

    Example:
        >>> modulate(torch.ones(1, 2), torch.tensor([2.0, 3.0]), torch.tensor([0.0, -1.0])).tolist()
        [[2.0, 2.0]]
    """
    return torch.addcmul(shift, tokens, scale).to(tokens.dtype)  # one pass over the tokens


def modulate_lanes(
    tokens: Tensor,
    scale: Float[Tensor, "tasks p"],
    shift: Float[Tensor, "tasks p"],
    statistics: TokenStatistics | None,
    places: Places,
    state: CallState,
) -> Tensor:
    """The folded tokens of every lane of a call, each scaled and shifted by the row of its task.

    Args:
        tokens: What enters the block: one tensor, streams, or what the block around this one has folded.
        scale: `W - 1`, a row per modulated task.
        shift: `b`, likewise.
        statistics: Of batch-norm modulators.
        places: Per lane, its row; -1 where its task has no modulator.
        state: Of the call.
    """
    layout, lanes = state.call.layout, state.lanes
    if state.rows is not None:
        unfolded = tokens.unsqueeze(layout.batch + 1)
    elif state.within:
        unfolded = unfold_lanes(tokens, lanes, layout.batch)
    elif isinstance(tokens, Streams):
        unfolded = unfold_lanes(fold(tokens, state.groups, layout.batch), lanes, layout.batch)
    else:
        unfolded = tokens.unsqueeze(layout.batch)  # broadcast over the lanes: the product makes the copies
    if statistics is not None:
        unfolded = _normalise(statistics, unfolded, places, lanes, layout)
    shape = [1] * unfolded.ndim
    shape[layout.batch], shape[_behind_lanes(layout.channel)] = lanes, scale.shape[-1]
    scale, shift = rows_of(scale, places, 0.0) + 1, rows_of(shift, places, 0.0)
    return modulate(unfolded, scale.view(shape), shift.view(shape)).flatten(layout.batch, layout.batch + 1)


def _normalise(statistics: TokenStatistics, unfolded: Tensor, places: Places, lanes: int, layout: Layout) -> Tensor:
    """The lanes of each task normalised together, by that task's statistics."""

    def own(tokens: Tensor, row: int, channel: int) -> Tensor:
        return statistics(tokens.movedim(channel, -1), row).movedim(-1, channel)

    unfolded = unfolded.expand([lanes if dim == layout.batch else size for dim, size in enumerate(unfolded.shape)])
    if isinstance(places, list):
        apart = zip(unfolded.unbind(layout.batch), places, strict=True)
        return torch.stack([t if row < 0 else own(t, row, layout.channel) for t, row in apart], layout.batch)
    normed = unfolded
    for row in range(len(statistics.mean)):
        members = (places == row).nonzero().flatten()
        if len(members):
            chosen = unfolded.index_select(layout.batch, members)
            normed = normed.index_copy(layout.batch, members, own(chosen, row, _behind_lanes(layout.channel)))
    return normed


def _behind_lanes(dim: int) -> int:
    """A dimension of the tokens once the batch is unfolded into lanes and samples."""
    return dim if dim < 0 else dim + 1


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
        self.register_buffer("mean", like.new_empty(tasks, width))
        self.register_buffer("variance", like.new_empty(tasks, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin anew: no mean, unit variance."""
        self.mean.zero_()
        self.variance.fill_(1.0)

    def forward(self, tokens: Float[Tensor, "*batch p"], task: int) -> Float[Tensor, "*batch p"]:
        """The tokens of one task, normalised; `task` is its row in the buffers."""
        flat = tokens.flatten(0, -2)
        normed = nn.functional.batch_norm(
            flat, self.mean[task], self.variance[task], training=self.training and len(flat) > 1, momentum=self.momentum
        )
        return normed.view(tokens.shape).to(tokens.dtype)
