"""The graph of a pass, cut behind every block, so that backward passes may go from block to block.

What a block makes is put in front of what reads it as a new beginning: a head that reads the tokens of several blocks reads
beginnings, too. Gradients are the same, handed on from each beginning to what it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

from dtme.outputs import map_tensors
from dtme.streams import Streams, gather

Outputs = TypeVar("Outputs")

FEW = {"cpu": 2**14, "cuda": 2**20}
"""Numbers in what a block makes, up to which it is not cut off: ViT-Ti on one image of 224 pixels lies above the first.

So few numbers of all tasks need little memory together, and a backward pass for all tasks at once may be tried.
"""


@dataclass
class Cut:
    """Where a graph was cut, behind one run of a block.

    Attributes:
        ends: What the block made, with all that it was made from.
        beginnings: Leaves of the same values.
        replaced: What goes on from these, in the place of the ends.
        number: Of the cut among all that autograd has noted in this thread.
    """

    ends: list[Tensor] = field(default_factory=list)
    beginnings: list[Tensor] = field(default_factory=list)
    replaced: list[Tensor] = field(default_factory=list)
    number: int = -1


def cut(outputs: Outputs, cuts: list[Cut]) -> Outputs:
    """What goes on in the place of what a block gave; that itself, where there was nothing to cut.

    A hook of a tensor's that is read by what lies in several segments runs on what each of them gives, not on the sum.

    Args:
        outputs: A tensor, or tensors in lists, tuples, dictionaries and data classes.
        cuts: The cut is added.

    Example:
        >>> x = torch.ones(2**15, requires_grad=True)
        >>> cuts = []
        >>> y = cut(3 * x, cuts)
        >>> (seed,) = torch.autograd.grad((2 * y).sum(), cuts[0].beginnings[0])
        >>> torch.autograd.grad(cuts[0].ends[0], x, seed)[0].unique().tolist()
        [6.0]
    """
    if not torch.is_grad_enabled():
        return outputs
    own = Cut()

    def begun(tensor: Tensor) -> Tensor:
        if not tensor.requires_grad or tensor.is_nested or tensor.numel() <= FEW.get(tensor.device.type, 0):
            return tensor
        for end, replaced in zip(own.ends, own.replaced, strict=True):
            if end is tensor:
                return replaced
        own.ends.append(tensor)
        own.beginnings.append(tensor.detach().requires_grad_())
        own.replaced.append(_GoesOn.apply(own.beginnings[-1]))
        # What a model has written on its tokens, their height and width say.
        vars(own.replaced[-1]).update(vars(tensor))
        return own.replaced[-1]

    def goes_on(tensor: Tensor) -> Tensor:
        if isinstance(tensor, Streams):
            return gather([begun(stream) for stream in tensor._streams], tensor._groups)
        return begun(tensor)

    replaced = map_tensors(outputs, goes_on)
    if not own.ends or _share_memory(own.ends):
        return outputs
    own.number = _number_of(own.replaced[0])
    cuts.append(own)
    return replaced


def made_behind(tokens: Tensor, cuts: list[Cut]) -> int:
    """How many of the cuts had been made when some tokens were, or the first of their streams."""
    earliest = min(map(_number_of, tokens._streams if isinstance(tokens, Streams) else (tokens,)))
    return sum(own.number <= earliest for own in cuts)


def may_be_cut(model: nn.Module, blocks: Iterable[str]) -> set[str]:
    """The blocks that neither have hooks on their way back nor lie in a module that has.

    Such a hook is told what came into a module and what went out at once, and would see that come apart.
    """
    if hooks_of_all._global_backward_hooks or hooks_of_all._global_backward_pre_hooks:
        return set()
    hooked = [name for name, module in model.named_modules() if module._backward_hooks or module._backward_pre_hooks]
    return {block for block in blocks if not any(f"{block}.".startswith(f"{name}." if name else "") for name in hooked)}


def _share_memory(tensors: list[Tensor]) -> bool:
    """Whether one of them is a view of another: what is written over the one has to reach the other."""
    if len(tensors) == 1:
        return False
    places = [tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.layout == torch.strided]
    return len(set(places)) < len(places)


def _number_of(tensor: Tensor) -> int:
    return -1 if tensor.grad_fn is None else tensor.grad_fn._sequence_nr()


class _GoesOn(torch.autograd.Function):
    """A beginning as a tensor that may be written in place, as what a block gives may be: neither a leaf nor a view of one."""

    @staticmethod
    def forward(ctx: Any, beginning: Tensor) -> Tensor:
        return beginning.data  # detach() would give a view, which may not be written

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
