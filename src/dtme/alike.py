"""Which blocks are alike, so that what has been counted of one is known of the other: a trunk repeats one block."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dtme.arguments import Call

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}


def likeness(block: nn.Module, call: Call, holders: Mapping[nn.Module, int] | None = None) -> Hashable:
    """Equal for two blocks of one make and size that are called alike, whatever their weights.

    All that can be seen without running them is looked at: the classes of their modules, the shapes of their weights, what else
    they hold, the hooks of the modules in them and whether others hold these as well; of the call shapes, and the values of
    indices and of all that is no tensor. What cannot be compared by its value is taken for itself. Work that depends on
    weights or on data is not seen.

    Args:
        block: The one.
        call: The arguments it is called with.
        holders: By module, how often the model holds it.

    Example:
        >>> one, other, wider = nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(2, 6)
        >>> call = ((torch.ones(3, 2),), {})
        >>> likeness(one, call) == likeness(other, call), likeness(one, call) == likeness(wider, call)
        (True, False)
    """
    leaves, spec = pytree.tree_flatten(call)
    first = [next(place for place, other in enumerate(leaves) if other is leaf) for leaf in leaves]  # x, x is not x, y
    given = [_of_value(leaf, _Itself(object())) for leaf in leaves]
    modules = {module: place for place, module in enumerate(block.modules())}
    held = tuple((holders or {}).get(module, 1) > 1 for module in modules)
    return tuple(_of_module(module, modules) for module in modules), held, str(spec), tuple(first), tuple(given)


def _of_module(module: nn.Module, places: Mapping[nn.Module, int]) -> Hashable:
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    own = [
        (key, _of_value(value, _Itself(value))) for key, value in vars(module).items() if key not in _OF_EVERY_MODULE
    ]
    inside = [(key, None if child is None else places[child]) for key, child in module._modules.items()]
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()] if places[module] else []
    return (
        type(module),
        tuple((key, _of_tensor(tensor)) for key, tensor in tensors),
        tuple(own),
        tuple(inside),
        tuple(hooks),  # those of the block itself do not run with its forward alone
    )


def _of_tensor(tensor: Tensor) -> Hashable:
    """Its kind and shape and, where it holds indices or one number, what it holds."""
    says = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype is not torch.bool
    known = tuple(tensor.flatten().tolist()) if says or tensor.ndim == 0 else ()
    return tuple(tensor.shape), tensor.dtype, tensor.device, known


def _of_value(value: Any, unknown: Hashable) -> Hashable:
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, tuple | list):
        return type(value), *(_of_value(own, unknown) for own in value)
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return type(value), value
    return unknown


@dataclass(frozen=True, eq=False)
class _Itself:
    """Equal to what holds the very same object, which lives as long as this does, so that no other can come by its address."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
