"""Which blocks are alike, so that what has been counted of one is known of the other: a trunk repeats one block."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dtme.arguments import Call

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def likeness(block: nn.Module, call: Call) -> Hashable:
    """Equal for two blocks of one make and size that are called alike, whatever their weights.

    All that says how a block runs is looked at: the classes of its modules, the shapes of their weights, what else they hold
    and how many hooks they have, and of the call shapes and values. What cannot be compared by its value is taken for itself.

    Args:
        block: The one.
        call: The arguments it is called with.

    Example:
        >>> one, other, wider = nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(2, 6)
        >>> call = ((torch.ones(3, 2),), {})
        >>> likeness(one, call) == likeness(other, call), likeness(one, call) == likeness(wider, call)
        (True, False)
    """
    leaves, spec = pytree.tree_flatten(call)
    return tuple(_of_module(name, module) for name, module in block.named_modules()), str(spec), *map(_of_value, leaves)


def _of_module(name: str, module: nn.Module) -> Hashable:
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    own = [(key, _of_value(value)) for key, value in vars(module).items() if key not in _OF_EVERY_MODULE]
    hooks = len(module._forward_pre_hooks), len(module._forward_hooks)
    return name, type(module), tuple((key, _of_value(tensor)) for key, tensor in tensors), tuple(own), hooks


def _of_value(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, tuple | list):
        return type(value), *map(_of_value, value)
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return type(value), value
    return _Itself(value)


@dataclass(frozen=True, eq=False)
class _Itself:
    """Equal to what holds the very same object, which lives as long as this does, so that no other can come by its address."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
