"""The graph of a pass, cut behind every block, so that backward passes may go from block to block.

What a block makes is put in front of what reads it as a new beginning: a head that reads the tokens of several blocks reads
beginnings, too, and there is no way around them. Gradients are the same, handed on from each beginning to what it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dtme.eager import is_transformed
from dtme.streams import Streams, gather

Outputs = TypeVar("Outputs")

FEW = {"cpu": 2**14, "cuda": 2**20}
"""Numbers in what a block makes, up to which it is not cut off: ViT-Ti on one image of 224 pixels lies above the first.

So few numbers of all tasks need little memory together, and a backward pass for all tasks at once may be tried.
"""


@dataclass
class Cut:
    """Where a graph was cut.

    Attributes:
        end: What a block made, with all that it was made from.
        beginning: The leaf that what reads it goes on from.
    """

    end: Tensor
    beginning: Tensor


def cut(outputs: Outputs, cuts: list[Cut]) -> Outputs:
    """What goes on in the place of what a block gave; every cut that was made is added to `cuts`.

    Args:
        outputs: A tensor, or tensors in lists, tuples, dicts and what else is registered as a tree.
        cuts: Added to.

    Example:
        >>> x = torch.ones(2**15, requires_grad=True)
        >>> made, cuts = [], []
        >>> y = cut(3 * x, cuts)
        >>> (seed,) = torch.autograd.grad((2 * y).sum(), cuts[0].beginning)
        >>> torch.autograd.grad(cuts[0].end, x, seed)[0].unique().tolist()
        [6.0]
    """
    if is_transformed():
        return outputs
    replaced: dict[int, Tensor] = {}

    def of(tensor: Tensor) -> Tensor:
        if isinstance(tensor, Streams):
            return gather([of(stream) for stream in tensor._streams], tensor._groups)
        if not tensor.requires_grad or tensor.numel() <= FEW.get(tensor.device.type, 0):
            return tensor
        if id(tensor) not in replaced:
            cuts.append(Cut(tensor, tensor.detach().requires_grad_()))
            replaced[id(tensor)] = _GoesOn.apply(cuts[-1].beginning)
        return replaced[id(tensor)]

    return pytree.tree_map_only(Tensor, of, outputs)


class _GoesOn(torch.autograd.Function):
    """A beginning as a tensor that may be written in place, as what a block gives may be: neither a leaf nor a view of one."""

    @staticmethod
    def forward(ctx: Any, beginning: Tensor) -> Tensor:
        return beginning.data

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
