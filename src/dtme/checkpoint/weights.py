"""Tensors on their way into a file and out of it: none shares memory, all are finite, and they are those that are expected."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor


def lay_apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none of which shares memory with another, as safetensors wants it."""
    seen: set[int] = set()
    for name, tensor in weights.items():
        memory = tensor.untyped_storage().data_ptr()
        weights[name] = tensor.clone().contiguous() if memory in seen else tensor.contiguous()
        seen.add(memory)
    return weights


def check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors of other names, shapes or kinds of number than are expected.

    Raises:
        ValueError: Some are; the message begins with `what`.
    """
    for name in sorted(found.keys() & expected.keys()):
        if _kind(found[name]) != _kind(expected[name]):
            raise ValueError(
                f"{what}: {name!r} holds {found[name].dtype}, another kind of number than {expected[name].dtype}."
            )
    one = {name: tuple(tensor.shape) for name, tensor in found.items()}
    other = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    different = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    if different:
        listed = "; ".join(
            f"{name!r} has shape {one.get(name, 'missing')}, expected {other.get(name, 'nothing')}"
            for name in different[:3]
        )
        raise ValueError(f"{what}: {listed}" + (f"; and {len(different) - 3} more." if len(different) > 3 else "."))


def check_finite(tensors: Mapping[str, Tensor], learnt: Collection[str], what: str, remedy: str) -> None:
    """Refuse learnt values that are not finite.

    Raises:
        ValueError: Some are; the message begins with `what` and ends with the remedy.
    """
    floating = {name: t for name, t in tensors.items() if name in learnt and t.is_floating_point()}
    broken = [name for name, tensor in floating.items() if not bool(tensor.float().isfinite().all())]
    if broken:
        raise ValueError(f"{what}: {broken[0]!r} holds values that are not finite ({len(broken)} such). {remedy}")


def _kind(tensor: Tensor) -> str:
    """What its numbers are, in whatever precision."""
    if tensor.dtype == torch.bool:
        return "bool"
    return "complex" if tensor.is_complex() else "real" if tensor.is_floating_point() else "whole"
