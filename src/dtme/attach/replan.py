"""Another plan in place of the one that is applied: what both have goes on as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dtme.attach.apply import apply, find_applied, remove
from dtme.inserts.insert import Insert
from dtme.plan.plan import Plan

Own = tuple[str, str, str]
"""A task's share of what is inserted: the block, the parameter in its insert, the task."""


def replan(model: nn.Module, plan: Plan, *, branches: Mapping[str, nn.Module | str] | None = None) -> nn.Module:
    """Change a model's plan in place.

    Where a parameter serves the same tasks under both plans and has the same shape, it stays the same object, so that an
    optimizer goes on with its state; where only some of its tasks stay, their values do. Other inserts begin as those of
    `apply` do.

    Args:
        model: A model that a plan has been applied to.
        plan: The new one.
        branches: As in `apply`; `None` takes those given before, where the tasks are the same.

    Returns:
        The same model. On an error it has the plan that it had.

    Raises:
        ValueError: The new plan does not fit the model.
    """
    owner, applied = find_applied(model)
    before = dict(_shares(owner))
    if branches is None and applied.branches is not None and set(applied.branches) == set(plan.tasks):
        branches = applied.branches
    remove(owner)
    try:
        apply(owner, plan, branches=branches)
    except Exception:
        apply(owner, applied.plan, branches=applied.branches)
        _keep(owner, before)
        raise
    _keep(owner, before)
    return model


def _shares(model: nn.Module) -> Iterator[tuple[Own, tuple[Tensor, int | None, tuple[str, ...]]]]:
    """Every task's share: the tensor, the row of it, and the tasks of all rows."""
    for name, own, tensor, tasks, _ in _inserted(model):
        row = None if own.startswith("copies.") else 0
        for place, task in enumerate(tasks):
            yield (name, _whatever_place(own), task), (tensor, None if row is None else place, tasks)


@torch.no_grad()
def _keep(model: nn.Module, before: Mapping[Own, tuple[Tensor, int | None, tuple[str, ...]]]) -> None:
    for name, own, tensor, tasks, holder in list(_inserted(model)):
        known = [before.get((name, _whatever_place(own), task)) for task in tasks]
        if known and known[0] is not None and known[0][2] == tasks and known[0][0].shape == tensor.shape:
            kind = holder._parameters if isinstance(tensor, nn.Parameter) else holder._buffers
            kind[own.rpartition(".")[2]] = known[0][0]
            continue
        for place, share in enumerate(known):
            if share is not None and share[1] is not None and share[0][share[1]].shape == tensor[place].shape:
                tensor[place] = share[0][share[1]]


def _inserted(model: nn.Module) -> Iterator[tuple[str, str, Any, tuple[str, ...], Any]]:
    """Block, name, tensor, tasks and holder of everything that inserts hold; what is tied comes under each of its names."""
    for name, insert in model.named_modules():
        if not isinstance(insert, Insert):
            continue
        named = [
            *insert.named_parameters(remove_duplicate=False),
            *insert.named_buffers(remove_duplicate=False),
        ]
        for own, tensor in named:
            yield name, own, tensor, insert.tasks_of(own), insert.get_submodule(own.rpartition(".")[0])


def _whatever_place(own: str) -> str:
    """A parameter's name, for a copy without its place among the copies, which is the task's."""
    return f"copies.{own.split('.', 2)[2]}" if own.startswith("copies.") else own
