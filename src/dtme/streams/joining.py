"""One output of the parts of a block that ran one after the other: of the block on some lanes, and of its copies on others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dtme._pytree import map_tensors, tensors_of
from dtme.streams.lanes import Lanes, choose_lanes


def join_outputs(
    name: str, outputs: list[Any], tokens: list[Tensor], order: Lanes, dim: int, *, strict: bool = True
) -> Any:
    """The first output, with every tensor in it put together from those that stand at its place in all of them.

    Args:
        name: Of the block.
        outputs: Of the parts.
        tokens: Of the parts, found in their outputs.
        order: Which lane of all parts, one after the other, stands at each place of the batch.
        dim: Of the samples in the tokens.
        strict: Whether what cannot be put together is an error; the first part's stands for all, if not.

    Raises:
        ValueError: The parts gave tensors that belong to no lane, and they differ.
    """
    rows = [own.shape[dim] for own in tokens]
    places = zip(*(tensors_of(output) for output in outputs), strict=True)

    def one(tensor: Tensor) -> Tensor:
        own = list(next(places))
        if tensor is tokens[0]:
            return _chosen(tokens, order, dim)
        return (
            tensor if all(other is tensor for other in own) else _together(name, own, rows, order, dim, strict=strict)
        )

    return map_tensors(outputs[0], one)


def _chosen(parts: list[Tensor], order: Lanes, dim: int) -> Tensor:
    return choose_lanes(torch.cat(parts, dim), len(order), order, dim)


def _together(name: str, own: list[Tensor], rows: list[int], order: Lanes, dim: int, *, strict: bool) -> Tensor:
    first = own[0]
    for axis in dict.fromkeys((dim, 0)):  # attention weights come with samples first, whatever the tokens do
        sizes = [tensor.shape[axis] if tensor.ndim > axis else -1 for tensor in own]
        if sizes == rows and _differ_along(own, axis):
            return _chosen(own, order, axis)
    if all(tensor.ndim and len(tensor) == 1 and tensor.shape == first.shape for tensor in own):  # for all samples alike
        wide = [tensor.expand(many, *tensor.shape[1:]) for tensor, many in zip(own, rows, strict=True)]
        return _chosen(wide, order, 0)
    if all(tensor.ndim == 0 and tensor.is_floating_point() for tensor in own):  # a mean over the samples, say of a loss
        return torch.stack([tensor * (many / sum(rows)) for tensor, many in zip(own, rows, strict=True)]).sum()
    if strict and not torch.compiler.is_compiling() and not all(torch.equal(tensor, first) for tensor in own):
        raise ValueError(
            f"copies: besides its tokens block {name!r} returns a tensor {tuple(first.shape)} that differs from copy to copy and "
            "has no dimension of samples, so that it is not known which task's is meant. Copy a part of the block, or another."
        )
    return first


def _differ_along(tensors: list[Tensor], axis: int) -> bool:
    """Whether nothing but the size along one dimension tells the shapes apart."""
    rest = {(*tensor.shape[:axis], *tensor.shape[axis:][1:]) for tensor in tensors}
    return len(rest) == 1
