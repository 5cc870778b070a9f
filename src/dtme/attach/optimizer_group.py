"""The group of an optimizer that waits for what a plan adds: there from the start, empty, and filled in place.

Schedulers note how many groups there are when they are made, each in its own way, and some break, others go wrong in
silence, when a group joins later. A group that is there already is like any other to all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

MARK = "dtme"
"""The key that tells the group from others; it is saved in the optimizer's state as any option of a group is."""

_SPLITTING = ("deepspeed", "torch.distributed.optim.zero_redundancy_optimizer")
"""Modules of optimizers that settle at the start which parameters there are."""


def reserved_group(optimizer: Any, asker: str) -> dict[str, Any]:
    """The reserved group of an optimizer, or of the one inside a wrapper of accelerate or Lightning.

    Raises:
        ValueError: There is none, or the optimizer takes no parameters later; the message begins with `asker`.
    """
    check_takes_parameters(optimizer, asker)
    for group in getattr(optimizer, "param_groups", ()):
        if group.get(MARK):
            return group
    raise ValueError(
        f"{asker}: this {type(optimizer).__name__} has no group that waits for what a plan adds. Reserve one when you build it, "
        "before its scheduler: torch.optim.AdamW(dtme.parameter_groups(model, lr=...)). A group that joins later breaks "
        "schedulers."
    )


def check_takes_parameters(optimizer: Any, asker: str) -> None:
    """Refuse optimizers that have divided their parameters among processes, and drop empty groups.

    Raises:
        ValueError: It is one of DeepSpeed's, or torch's ZeroRedundancyOptimizer.
    """
    for kind in _kinds(optimizer):
        if kind.__module__.startswith(_SPLITTING) or "DeepSpeed" in kind.__name__:
            raise ValueError(
                f"{asker}: {kind.__name__} settles at the start which parameters there are, and drops empty groups. Plan first: "
                "dtme.apply(model, plan), then the optimizer, then the engine."
            )


def fill(group: dict[str, Any], optimizer: Any, added: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Put what a plan has added into the group, in place of what was there, whose state is forgotten."""
    named = list(added)
    staying = {id(parameter) for _, parameter in named}
    release(optimizer, (parameter for parameter in list(group["params"]) if id(parameter) not in staying))
    group["params"][:] = [parameter for _, parameter in named]
    if "param_names" in group:
        group["param_names"][:] = [name for name, _ in named]


def release(optimizer: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters, and their state, out of an optimizer."""
    leaving = {id(parameter): parameter for parameter in parameters}
    for group in optimizer.param_groups:
        kept = [place for place, parameter in enumerate(group["params"]) if id(parameter) not in leaving]
        for listed in ("params", "param_names"):
            if listed in group and len(kept) < len(group[listed]):
                group[listed][:] = [group[listed][place] for place in kept]
    for parameter in leaving.values():
        optimizer.state.pop(parameter, None)


def _kinds(optimizer: Any) -> Iterator[type]:
    """The classes of an optimizer and of those it wraps."""
    while optimizer is not None:
        yield from type(optimizer).__mro__
        inner = getattr(optimizer, "optimizer", None)
        optimizer = None if inner is optimizer else inner
