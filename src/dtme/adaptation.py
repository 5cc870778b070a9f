"""Adaptation (ours, not the paper's): low-rank updates of a block's linear layers, one per task, in the streams.

    y = W x + b + B_i A_i x,    A_i in R^(rank x in), B_i in R^(out x rank), B_i = 0 at the start

Every row of a linear layer's input belongs to one lane of the pass, a stream or a sample; one batched product serves all.
The projections of an `nn.MultiheadAttention` are linear layers too, though it calls none: `in_proj` (queries, keys and values
in one, or `q_proj`, `k_proj`, `v_proj` where they differ in size) and `out_proj`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from dtme.attention import is_open_to
from dtme.position_tables import OF_POSITIONS


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block, whatever keeps its weight.

    Attributes:
        module: What runs it: itself, or the attention whose projection it is.
        weight: Its weight, a view of the parameter.
    """

    module: nn.Module
    weight: Float[Tensor, "outputs inputs"]

    @property
    def in_features(self) -> int:
        """Channels it takes."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Channels it gives."""
        return self.weight.shape[0]


class LowRank(nn.Module):
    """The low-rank updates of one linear layer, stacked over the tasks that have one.

    Attributes:
        down: `A`, uniform at the start as a linear layer's weight is.
        up: `B`, zero at the start.
    """

    down: Float[Tensor, "tasks rank inputs"]
    up: Float[Tensor, "tasks outputs rank"]

    def __init__(self, tasks: int, linear: Linear, rank: int) -> None:
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
    *,
    fresh: bool = False,
) -> Tensor:
    """The outputs of a linear layer with each lane's `B A x` added; lanes lie one after another along `dim`.

    Without gradients it is added in place, where the outputs are `fresh` and no one else's: to read and write them is most
    of what the update costs.

    Example:
        >>> x, y = torch.ones(2, 3, 4), torch.zeros(2, 3, 1)
        >>> low_rank_update(x, y, torch.ones(2, 1, 4), torch.tensor([1.0, 10.0]).view(2, 1, 1), dim=0)[:, 0, 0].tolist()
        [4.0, 40.0]
    """
    lanes = len(down)
    rows = inputs.movedim(dim, 0)
    down, up = down.to(inputs.dtype), up.to(inputs.dtype)  # some routers compute in a wider type than their model
    inner = torch.bmm(rows.reshape(lanes, -1, rows.shape[-1]), down.mT)
    up = up.mT.contiguous()  # so that neither product of its backward pass has a handful of columns, which is slow
    if dim == 0 and inner.dtype == up.dtype == outputs.dtype and outputs.is_contiguous():
        own = outputs.view(lanes, -1, outputs.shape[-1])
        if fresh and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            torch.baddbmm(own, inner, up, out=own)
            return outputs
        return torch.baddbmm(own, inner, up).view_as(outputs)
    update = torch.bmm(inner, up)
    return outputs + update.reshape(*rows.shape[:-1], -1).movedim(0, dim).to(outputs.dtype)


def linear_layers(block: nn.Module, pattern: str | None = None) -> dict[str, Linear]:
    """The linear layers of a block that take its tokens, by their name in it.

    They are found by type: `nn.Linear`, the transposed one of GPT-2, and the projections of `nn.MultiheadAttention`. A layer
    that computes position biases has no row per sample and is left out. One that peft has put adapters on keeps its name.

    Args:
        block: A block, without insert or with one.
        pattern: A regular expression matched against the whole name; `None` takes all.

    Raises:
        ValueError: An attention among them has a forward of its own, which cannot be told how it uses its projections.

    Example:
        >>> list(linear_layers(nn.TransformerEncoderLayer(8, 2)))
        ['self_attn.in_proj', 'self_attn.out_proj', 'linear1', 'linear2']
    """
    found = {
        name: linear
        for name, linear in ((name.replace(".base_layer", ""), linear) for name, linear in _linear_layers(block))
        if not OF_POSITIONS.search(name) and (pattern is None or re.fullmatch(pattern, name))
    }
    for name, linear in found.items():
        if isinstance(linear.module, nn.MultiheadAttention) and not is_open_to(linear.module):
            raise ValueError(
                f"{name!r} belongs to a {type(linear.module).__name__} with a forward of its own, where no update can be added. "
                f"Choose others by adapt_layers, a regular expression over their names: {list(found)}."
            )
    return found


def _linear_layers(block: nn.Module) -> Iterator[tuple[str, Linear]]:
    within: tuple[str, ...] = ("dtme.",)
    for name, module in block.named_modules():
        if name.startswith(within):
            continue
        if isinstance(
            getattr(module, "base_layer", None), nn.Module
        ):  # peft's: the layer as it was, and adapters beside it
            within = (*within, *(f"{name}.{own}." for own, _ in module.named_children() if own != "base_layer"))
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.MultiheadAttention):
            prefix = f"{name}." if name else ""
            within = (*within, prefix) if prefix else within
            yield from ((prefix + own, Linear(module, weight)) for own, weight in _projections(module))
        elif isinstance(module, nn.Linear):
            yield name, Linear(module, module.weight)
        elif isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[1] == getattr(module, "nf", None):
            yield name, Linear(module, weight.mT)  # GPT-2 calls it a convolution


def _projections(attention: nn.MultiheadAttention) -> Iterator[tuple[str, Tensor]]:
    together = attention.in_proj_weight
    if together is not None:
        yield "in_proj", together
    else:
        yield from ((name, getattr(attention, f"{name}_weight")) for name in ("q_proj", "k_proj", "v_proj"))
    yield "out_proj", attention.out_proj.weight
