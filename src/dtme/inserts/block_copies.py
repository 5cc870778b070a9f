"""Copies of blocks that tasks get for themselves (ours, not the paper's): what is copied, and what goes on being shared."""

from __future__ import annotations

import copy
from functools import partial
from types import MethodType
from typing import Any

from torch import nn

from dtme._wrappers import unwrapped

_HOOKS = tuple(name for name in vars(nn.Module()) if "hooks" in name and ("forward" in name or "backward" in name))


def copy_of(name: str, block: nn.Module, model: nn.Module) -> nn.Module:
    """A copy of a block of a model, without hooks of its own, for those of the block are called around it.

    A block that is frozen as a whole has a copy that is trained.

    Args:
        name: Of the block.
        block: What is copied.
        model: What lies in it and not in the block is not copied along.

    Raises:
        ValueError: Something in the block cannot be copied; the message says what.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
        >>> own = copy_of("1", model[1], model)
        >>> own.weight is model[1].weight, own.weight.requires_grad
        (False, True)
    """
    if hasattr(block, "_orig_mod"):
        raise ValueError(
            f"copies: block {name!r} is compiled by itself, and a copy of it would not be. Compile after apply."
        )
    block = unwrapped(block)
    for inner, module in block.named_modules():
        forward = vars(module).get("forward")
        if forward is not None and not isinstance(forward, MethodType | partial):
            where = f"{inner!r} in block {name!r}" if inner else f"block {name!r}"
            raise ValueError(
                f"copies: {where} has a forward of its own, {forward!r}, which would run with the weights of the block in its "
                "copies. Write a class for it, or copy other blocks."
            )
    try:
        own = copy.deepcopy(block, _outside(block, model))
    except RuntimeError as why:  # a tensor that was computed, kept as an attribute
        raise ValueError(f"copies: block {name!r} cannot be copied. {why}") from why
    making = {key: hook for key, hook in own._forward_pre_hooks.items() if _makes_weight(hook)}
    for hooks in _HOOKS:
        vars(own)[hooks].clear()
    own._forward_pre_hooks.update(making)
    if not any(parameter.requires_grad for parameter in block.parameters()):
        for parameter in own.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return own


def make_weights(own: nn.Module, args: tuple[Any, ...]) -> None:
    """Let hooks of a copy compute its weight from its parameters, as those of the block do for the block."""
    for hook in own._forward_pre_hooks.values():
        if _makes_weight(hook):
            hook(own, args)


def _makes_weight(hook: object) -> bool:
    """Whether a hook computes a weight: pruning, spectral and weight norm, of `torch.nn.utils`, are such hooks."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def _outside(block: nn.Module, model: nn.Module) -> dict[int, object]:
    """What a copy goes on to share with the model: its other modules and tensors, and what settings the block reads."""
    inside = {id(own) for own in (*block.modules(), *block.parameters(), *block.buffers())}
    others = (*model.modules(), *model.parameters(), *model.buffers())
    settings = [vars(module)["config"] for module in block.modules() if vars(module).get("config") is not None]
    return {id(own): own for own in (*others, *settings) if id(own) not in inside}
