"""Tensors inside whatever a model takes or returns: tuples, lists, dictionaries, dict-like objects and data classes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def map_tensors(output: Any, change: Callable[[Tensor], Any]) -> Any:
    """The output with `change` applied to every tensor in it; containers are copied, never written to.

    Example:
        >>> import torch
        >>> map_tensors({"tokens": torch.ones(2), "maps": (torch.ones(1), None)}, lambda tensor: tensor + 1)
        {'tokens': tensor([2., 2.]), 'maps': (tensor([2.]), None)}
    """
    if isinstance(output, Tensor):
        return change(output)
    if type(output) in (tuple, list):  # the tree functions would do as much, and take longer
        return type(output)([map_tensors(value, change) for value in output])
    if output is None or isinstance(output, str | bool | int | float):
        return output
    if type(output) is dict:
        return {key: map_tensors(value, change) for key, value in output.items()}

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if isinstance(leaf, MutableMapping):  # those that the tree functions do not know, such as subclasses of dict
            twin = _like(leaf)
            for key, value in leaf.items():
                twin[key] = map_tensors(value, change)
            return twin
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            twin = copy.copy(leaf)
            for field in dataclasses.fields(leaf):
                object.__setattr__(twin, field.name, map_tensors(getattr(leaf, field.name), change))
            return twin
        return leaf

    return pytree.tree_map(changed, output)


def _like(mapping: MutableMapping[Any, Any]) -> MutableMapping[Any, Any]:
    """A mapping of the same kind, to be filled with the same keys."""
    kind = type(mapping)
    if not isinstance(mapping, dict) or hasattr(kind, "__copy__") or hasattr(kind, "__slots__"):
        return copy.copy(mapping)
    # copy.copy would do the same, but under torch.compile asks for `__setstate__`, which some mappings look up as a key.
    twin = kind.__new__(kind)
    vars(twin).update(vars(mapping))
    return twin


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Every tensor of an output, in the order in which `map_tensors` meets them."""
    if isinstance(output, Tensor):
        yield output
        return
    if output is None or isinstance(output, str | bool | int | float):
        return
    if type(output) in (tuple, list, dict):
        for value in output.values() if type(output) is dict else output:
            yield from tensors_of(value)
        return
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            for value in leaf.values():
                yield from tensors_of(value)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for field in dataclasses.fields(leaf):
                yield from tensors_of(getattr(leaf, field.name))
