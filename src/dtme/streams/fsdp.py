"""Streams under FSDP2: the hooks of `fully_shard` see the tensors that streams are made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from dtme._pytree import map_tensors, tensors_of
from dtme.distributed.wrappers import sharded_modules
from dtme.streams.folding import part
from dtme.streams.tensor import Streams, gather


def show_streams_plainly(model: nn.Module) -> None:
    """Let the hooks of `fully_shard` see the tensors that streams are made of, in place of the streams.

    They lead a module's inputs through a function of autograd, which knows one tensor and no streams behind it, and watch
    the gradients of its outputs, which are those of the folded batch. Called where streams part, since a model may be
    sharded at any time after `apply`.
    """
    for module in sharded_modules(model):
        for hooks, shown in ((module._forward_pre_hooks, _before_forward), (module._forward_hooks, _after_forward)):
            for key, hook in hooks.items():
                if getattr(hook, "__module__", None) == type(module._get_fsdp_state()).__module__:
                    hooks[key] = partial(shown, hook)


def _before_forward(hook: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    plain, rebuilt = _plainly((args, kwargs))
    return hook(module, args, kwargs) if plain is None else rebuilt(hook(module, (plain,), {})[0][0])


def _after_forward(hook: Callable[..., Any], module: nn.Module, args: Any, output: Any) -> Any:
    plain, rebuilt = _plainly(output)
    if plain is None:
        return hook(module, args, output)
    with warnings.catch_warnings():  # of outputs that are views: what is written in place is refused by the streams
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
        return rebuilt(hook(module, args, plain))


def _plainly(values: Any) -> tuple[tuple[Tensor, ...] | None, Callable[[tuple[Tensor, ...]], Any]]:
    """All tensors among some values, `None` if none of them has streams, and how to put others in their places."""
    tensors = list(tensors_of(values))

    def rebuilt(changed: tuple[Tensor, ...]) -> Any:
        remaining = iter(changed)
        return map_tensors(values, lambda tensor: _from_plain(tensor, remaining))

    if not any(isinstance(tensor, Streams) for tensor in tensors):
        return None, rebuilt
    return tuple(part for tensor in tensors for part in _parts(tensor)), rebuilt


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    if not isinstance(tensor, Streams):
        return (tensor,)
    return tensor._streams if tensor._folded is None else (tensor._folded[1],)


def _from_plain(tensor: Tensor, remaining: Iterator[Tensor]) -> Tensor:
    parts = [next(remaining) for _ in _parts(tensor)]
    if not isinstance(tensor, Streams):
        return parts[0]
    return (
        gather(parts, tensor._groups) if tensor._folded is None else part(parts[0], tensor._groups, tensor._folded[0])
    )
