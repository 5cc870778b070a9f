"""Modules around modules: what `torch.compile`, DistributedDataParallel and others put around a model or a part of it.

A wrapper puts a name of its own (`_orig_mod`, `module`) between those of the model. Names are those of the bare model everywhere:
what is planned with a wrapper fits without it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

_HOLDS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "AveragedModel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
}
"""Classes of torch, by name since most are slow to import, and what they call the module that they wrap."""


def unwrapped(module: nn.Module) -> nn.Module:
    """What is inside all wrappers around a module; itself, if there are none.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(layer)) is layer, unwrapped(layer) is layer
        (True, True)
    """
    inner = _held_by(module)
    while inner is not None:
        module, inner = inner, _held_by(inner)
    return module


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `model.named_modules()`, with the names that modules have without wrappers; a wrapper has that of what it wraps.

    Example:
        >>> [name for name, _ in named_modules(nn.ModuleDict({"trunk": nn.DataParallel(nn.Sequential(nn.ReLU()))}))]
        ['', 'trunk', 'trunk', 'trunk.0']
    """
    return _walk(model, "", set())


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """The name of every module without wrappers, as of `named_modules`."""
    return {module: name for name, module in named_modules(model)}


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model by the names of `named_modules`; a wrapper, which is what the model calls, before what it wraps."""
    return _first_of_each(named_modules(model))


def modules_by_any_name(model: nn.Module) -> dict[str, nn.Module]:
    """As `modules_by_name`, with every name of a module that is held several times.

    Example:
        >>> layer = nn.ReLU()
        >>> list(modules_by_any_name(nn.ModuleDict({"one": layer, "other": layer})))
        ['', 'one', 'other']
    """
    return _first_of_each(_walk(model, "", None))


def bare_keys(model: nn.Module) -> dict[str, str]:
    """The names of a model's modules in keys of its state dict, with a dot behind, and what they are without wrappers."""
    bare = module_names(model)
    return {f"{name}.": f"{bare[module]}." if bare[module] else "" for name, module in model.named_modules() if name}


def bare_key(key: str, keys: dict[str, str]) -> str:
    """A key of a state dict, or the name of a parameter, without wrappers.

    Args:
        key: The key.
        keys: From `bare_keys`.

    Example:
        >>> bare_key("module.weight", bare_keys(nn.DataParallel(nn.Linear(2, 2))))
        'weight'
    """
    holder, dot, own = key.rpartition(".")
    return keys.get(holder + dot, holder + dot) + own


def run_eagerly() -> AbstractContextManager[Any]:
    """What is compiled runs as it was written, while the context lasts."""
    if "torch._dynamo" not in sys.modules:  # slow to import, and without it nothing is compiled
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def compiled_within(block: nn.Module) -> list[str]:
    """What in a block is compiled by itself, by name; `""` stands for the block.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2)
        >>> layer.linear1 = torch.compile(layer.linear1)
        >>> compiled_within(layer), compiled_within(torch.compile(layer.norm1))
        (['linear1'], [''])
    """
    return [
        name
        for name, module in named_modules(block)
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None
    ]


def _first_of_each(named: Iterator[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {}
    for name, module in named:
        modules.setdefault(name, module)
    return modules


def _held_by(wrapper: nn.Module) -> nn.Module | None:
    for kind in type(wrapper).__mro__:
        if kind.__name__ in _HOLDS and kind.__module__.startswith("torch."):
            return wrapper._modules[_HOLDS[kind.__name__]]
    return None


def _walk(module: nn.Module, name: str, seen: set[nn.Module] | None) -> Iterator[tuple[str, nn.Module]]:
    """Every module under its first name, or under all of them where those that were `seen` do not count."""
    if seen is not None:
        if module in seen:
            return
        seen.add(module)
    yield name, module
    held = _held_by(module)
    for own, child in module._modules.items():
        if child is not None:
            yield from _walk(child, name if child is held else f"{name}.{own}" if name else own, seen)
