"""Put a plan into a model, and take it out again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from dtme.blocks import find_blocks, width_of
from dtme.insert import Insert, enter, leave
from dtme.plan import Plan
from dtme.routing import Routing, leave_trunk


@dataclass
class Applied:
    """What `apply` did to a model: enough to take it back."""

    plan: Plan
    blocks: tuple[str, ...]
    handles: list[RemovableHandle]


def apply(model: nn.Module, plan: Plan, *, branches: Mapping[str, nn.Module | str] | None = None) -> nn.Module:
    """Insert the modulators and task tokens of a plan into a model, in place.

    The model's classes, its own parameters and their state-dict keys stay as they are; each block from the first insert
    on gets a child module `dtme`. Afterwards `model(x)` computes all tasks in one pass: the trunk once up to the block
    where streams part, from there on one stream per task, folded into the batch.

    Args:
        model: A multi-task model whose tasks leave a shared transformer trunk through a branch each.
        plan: From `ConflictReport.plan`, or written by hand.
        branches: Task to the module, or its name, where the task leaves the trunk. By default every `ModuleDict` whose
            keys are the tasks.

    Returns:
        The same model.

    Raises:
        ValueError: The plan does not fit the model, the branches are not found, or a plan has been applied before.

    Example:
        >>> trunk = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 2, enable_nested_tensor=False)
        >>> heads = nn.ModuleDict({"depth": nn.Linear(8, 1), "semseg": nn.Linear(8, 3)})
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk, self.heads = trunk, heads
        ...     def forward(self, x):
        ...         tokens = self.trunk(x)
        ...         return {task: head(tokens) for task, head in self.heads.items()}
        >>> plan = Plan(tasks=("depth", "semseg"), modulate={"trunk.layers.1": ("depth", "semseg")})
        >>> model = apply(Model(), plan)
        >>> sum(p.numel() for _, p in added_parameters(model)) == plan.parameters(8)
        True
    """
    if is_applied(model):
        raise ValueError("apply: this model has inserts already. Call dtme.remove(model) before applying another plan.")
    blocks = _blocks_of_plan(model, plan)
    leaving = _branches_of(model, plan, branches)
    routing = Routing(plan.tasks, plan.tasks)
    inserts = {name: Insert(name, block, plan, routing, width_of(block)) for name, block in blocks.items()}
    handles = []
    for name, block in blocks.items():
        insert = inserts[name]
        block.dtme = insert.train(block.training).to(_device_of(block))
        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.register_forward_hook(leave, with_kwargs=True))
    for task, module in leaving:
        handles.append(module.register_forward_pre_hook(partial(leave_trunk, routing, task), with_kwargs=True))
    model._dtme_routing = routing
    model._dtme_applied = Applied(plan, tuple(blocks), handles)
    return model


def remove(model: nn.Module) -> nn.Module:
    """Take out what `apply` put in: outputs, state-dict keys and hooks are those of the model before.

    Training since then may have changed the model's own parameters; they stay as trained.

    Returns:
        The same model.

    Raises:
        ValueError: No plan has been applied.
    """
    owner = applied_module(model)
    applied = owner._dtme_applied
    assert isinstance(applied, Applied)
    for handle in applied.handles:
        handle.remove()
    for name in applied.blocks:
        del owner.get_submodule(name).dtme
    del owner._dtme_applied, owner._dtme_routing
    return model


def added_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of what `apply` added, for an optimiser group of their own (no weight decay).

    Raises:
        ValueError: No plan has been applied.
    """
    applied_module(model)
    return (
        (f"{name}.{own}", parameter)
        for name, module in model.named_modules()
        if isinstance(module, Insert)
        for own, parameter in module.named_parameters()
    )


def is_applied(model: nn.Module) -> bool:
    """Whether the model, or a module in it, has inserts."""
    return any(isinstance(module, Insert) for module in model.modules())


def applied_module(model: nn.Module) -> nn.Module:
    """The module `apply` was called on: the model itself, or the one inside a wrapper.

    Raises:
        ValueError: No plan has been applied.
    """
    for module in model.modules():
        if isinstance(getattr(module, "_dtme_applied", None), Applied):
            return module
    raise ValueError("this model has no inserts: call dtme.apply(model, plan) first.")


def plan_of(model: nn.Module) -> Plan:
    """The plan that was applied to a model.

    Raises:
        ValueError: No plan has been applied.
    """
    applied = applied_module(model)._dtme_applied
    assert isinstance(applied, Applied)
    return applied.plan


def _device_of(block: nn.Module) -> torch.device:
    return next((p.device for p in block.parameters()), torch.device("cpu"))


def _blocks_of_plan(model: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    """The plan's blocks and, so that streams stay folded, every block of the trunk behind the first of them."""
    modules = dict(model.named_modules())
    missing = [name for name in plan.blocks if name not in modules]
    try:
        trunk = find_blocks(model)
    except ValueError:
        trunk = {}
    if missing:
        raise ValueError(f"plan: this model has no block {missing[0]!r}. Its blocks: {', '.join(trunk) or 'none found'}.")
    if plan.adapt:
        raise ValueError("plan.adapt: low-rank adaptation is not part of this version; apply a plan without it.")
    for name in plan.blocks:
        if isinstance(modules[name], nn.Sequential | nn.ModuleList | nn.ModuleDict):
            kind = type(modules[name]).__name__
            raise ValueError(f"plan: {name!r} is a {kind}, which would run an insert as a member. Name the blocks inside it.")
    order = list(modules)
    first = min((order.index(name) for name in plan.blocks), default=len(order))
    wanted = {name for name in trunk if order.index(name) >= first} | set(plan.blocks)
    sequential = {name for name in wanted if isinstance(modules[name], nn.Sequential)}
    return {name: module for name, module in modules.items() if name in wanted - sequential}


def find_branches(model: nn.Module, tasks: tuple[str, ...]) -> dict[str, list[nn.Module]]:
    """The modules where tasks leave the trunk: the members of every `ModuleDict` whose keys hold all the tasks."""
    found: dict[str, list[nn.Module]] = {task: [] for task in tasks}
    outer: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleDict) and set(tasks) <= set(module.keys()) and not name.startswith(tuple(outer)):
            outer.append(f"{name}.")
            for task in tasks:
                found[task].append(module[task])
    return found


def _branches_of(
    model: nn.Module, plan: Plan, branches: Mapping[str, nn.Module | str] | None
) -> list[tuple[str, nn.Module]]:
    if branches is None:
        found = find_branches(model, plan.tasks)
        if not all(found.values()):
            dictionaries = {n: tuple(m.keys()) for n, m in model.named_modules() if isinstance(m, nn.ModuleDict)}
            raise ValueError(
                f"branches: no ModuleDict of this model has the tasks {plan.tasks} as keys (found: {dictionaries or 'no ModuleDict'}). "
                "Say where each task leaves the trunk: apply(model, plan, branches={task: module or its name})."
            )
        return [(task, module) for task, modules in found.items() for module in modules]
    if set(branches) != set(plan.tasks):
        raise ValueError(f"branches names {tuple(branches)}, the plan has the tasks {plan.tasks}: give one module per task.")
    named = dict(model.named_modules())
    leaving: list[tuple[str, nn.Module]] = []
    for task in plan.tasks:
        module = branches[task]
        if isinstance(module, str):
            if module not in named:
                raise ValueError(f"branches[{task!r}]={module!r}: this model has no module of that name.")
            module = named[module]
        shared = [other for other, taken in leaving if taken is module]
        if shared:
            raise ValueError(
                f"branches: tasks {shared[0]!r} and {task!r} leave by the same module, which cannot take two streams. "
                "Give each task a module of its own, for instance nn.Identity() before the shared one."
            )
        leaving.append((task, module))
    return leaving
