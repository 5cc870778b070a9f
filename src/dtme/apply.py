"""Put a plan into a model, and take it out again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from dtme.adaptation import linear_layers
from dtme.adapting import adapt, adapt_projection
from dtme.attention import Opened, open_attention
from dtme.blocks import find_blocks, fused_projections, holders_of, packing_modules
from dtme.branches import leaving_modules
from dtme.copying import Branched, branch
from dtme.crossing import enter, leave
from dtme.failing import name_block
from dtme.first_backward import FirstBackward, watch
from dtme.insert import Insert, layer_key, runs_last
from dtme.layout import width_of
from dtme.parallel import check_not_distributed
from dtme.passed_by import watch_for_passing_by
from dtme.plan import Plan
from dtme.position_tables import Widened, spanning_tables, widen
from dtme.routing import Routing, begin_pass, end_pass, leave_trunk, owner_of


@dataclass
class Applied:
    """What `apply` did to a model: enough to route its passes and to take it back."""

    plan: Plan
    routing: Routing
    blocks: tuple[str, ...]
    packing: tuple[str, ...]
    fused: tuple[str, ...]
    handles: list[RemovableHandle | Opened | Widened | Branched]
    first_backward: FirstBackward


def apply(model: nn.Module, plan: Plan, *, branches: Mapping[str, nn.Module | str] | None = None) -> nn.Module:
    """Insert the modulators, task tokens, low-rank updates and copies of a plan into a model, in place.

    The model's classes, its own parameters and their state-dict keys stay as they are; each block from the first insert
    on gets a child module `dtme`. Afterwards `model(x)` computes all tasks in one pass: the trunk once up to the block
    where streams part, from there on one stream per task, folded into the batch.

    A block that runs several times in a pass (recurrent, or in a trunk that reads two inputs) has one insert, which acts in
    every run; tasks that part in one run stay parted in the next.

    Args:
        model: A multi-task model whose tasks leave a shared transformer trunk through a branch each.
        plan: From `ConflictReport.plan`, or written by hand.
        branches: Task to the module, or its name, where the task leaves the trunk. By default every `ModuleDict` whose
            keys are the tasks.

    Returns:
        The same model.

    Warns:
        UserWarning: Once, on a task's first backward pass in training: which of its inserts got no gradient.

    Raises:
        ValueError: The plan does not fit the model, the branches are not found, a plan has been applied before, or the
            model is distributed already: wrap it in DistributedDataParallel, or shard it, once the plan is applied.

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
    check_not_distributed(model)
    blocks = _blocks_of_plan(model, plan)
    leaving = leaving_modules(model, plan.tasks, branches)
    routing = Routing(model, plan.tasks, plan.tasks)
    inserts = {name: Insert(name, block, plan, routing, width_of(block)) for name, block in blocks.items()}
    _nest(inserts, blocks, plan, holders_of(model))
    handles = []
    for name, block in blocks.items():
        insert = inserts[name]
        # A part of a block may be in evaluation by itself, and then its copies are.
        modes = [(module, module.training) for module in insert.copies.modules()]
        insert.train(block.training)
        for module, training in modes:
            module.training = training
        block.dtme = insert.to(_device_of(block))
        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        # Prepended: hooks that others have put on the block, to collect hidden states say, get what the block hands on.
        handles.append(block.register_forward_hook(leave, with_kwargs=True, prepend=True))
        handles.append(block.register_forward_hook(name_block, always_call=True))
        handles += open_layers(block, insert, plan) if insert.adapted else []
        handles += [branch(block)] if insert.copied else []
        handles += [widen(attention) for attention in spanning_tables(block).values()] if insert.expanded else []
    for task, module in leaving:
        handles.append(module.register_forward_pre_hook(partial(leave_trunk, routing, task), with_kwargs=True))
    handles.append(model.register_forward_pre_hook(partial(begin_pass, routing), with_kwargs=True))
    handles.append(model.register_forward_hook(partial(end_pass, routing), always_call=True))
    handles += watch_for_passing_by(model, blocks, inserts)
    packing = packing_modules(model)
    for module in packing.values():
        module.use_nested_tensor = False
    fused = {f"{name}.{own}": m for name in plan.adapt for own, m in fused_projections(blocks[name]).items()}
    for module in fused.values():
        module.qkv_bias_separate = True
    _forget_compiled()
    placed = (plan.modulate, plan.expand, plan.adapt, plan.copies)
    given = {task for place in placed for tasks in place.values() for task in tasks}
    first_backward = watch(model, routing, given)
    applied = Applied(plan, routing, tuple(blocks), tuple(packing), tuple(fused), handles, first_backward)
    object.__setattr__(model, "_dtme", applied)
    return model


def remove(model: nn.Module) -> nn.Module:
    """Take out what `apply` put in: outputs, state-dict keys and hooks are those of the model before.

    Training since then may have changed the model's own parameters; they stay as trained.

    Returns:
        The same model.

    Raises:
        ValueError: No plan has been applied.
    """
    owner, applied = find_applied(model)
    applied.first_backward.stop()
    for handle in applied.handles:
        handle.remove()
    for name in applied.blocks:
        del owner.get_submodule(name).dtme
    for name in applied.packing:
        encoder: Any = owner.get_submodule(name)
        encoder.use_nested_tensor = True
    for name in applied.fused:
        attention: Any = owner.get_submodule(name)
        attention.qkv_bias_separate = False
    del owner._dtme
    _forget_compiled()
    return model


def added_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of what `apply` added, for an optimiser group of their own (no weight decay).

    Raises:
        ValueError: No plan has been applied.
    """
    find_applied(model)
    return (
        (f"{name}.{own}", parameter)
        for name, module in model.named_modules()
        if isinstance(module, Insert)
        for own, parameter in module.named_parameters()
    )


def is_applied(model: nn.Module) -> bool:
    """Whether the model, or a module in it, has inserts."""
    return any(isinstance(module, Insert) for module in model.modules())


def find_applied(model: nn.Module) -> tuple[nn.Module, Applied]:
    """The module `apply` was called on, the model itself or one inside a wrapper, and what was done to it.

    Raises:
        ValueError: No plan has been applied.
    """
    return owner_of(model)


def open_layers(block: nn.Module, insert: Insert, plan: Plan) -> Iterator[RemovableHandle | Opened]:
    """Let the linear layers of a block ask its insert for their updates; one handle for each attention or layer."""
    attentions: set[nn.Module] = set()
    for layer, linear in linear_layers(block, plan.adapt_layers).items():
        if not isinstance(linear.module, nn.MultiheadAttention):
            yield linear.module.register_forward_hook(partial(adapt, insert, layer_key(layer)))
        elif linear.module not in attentions:
            attentions.add(linear.module)
            prefix = layer[: layer.rfind(".") + 1]
            yield open_attention(
                linear.module, partial(adapt_projection, insert, prefix, 1 - linear.module.batch_first)
            )


def _forget_compiled() -> None:
    """Code that was compiled takes no notice of hooks that come or go later; it is compiled again when next called."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _device_of(block: nn.Module) -> torch.device:
    return next((p.device for p in block.parameters()), torch.device("cpu"))


def _blocks_of_plan(model: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    """The plan's blocks and, so that streams stay folded, every block of the trunk behind the first of them or around one."""
    modules = dict(model.named_modules())
    missing = [name for name in plan.blocks if name not in modules]
    try:
        trunk = find_blocks(model)
    except ValueError:
        trunk = {}
    if missing:
        raise ValueError(
            f"plan: this model has no block {missing[0]!r}. Its blocks: {', '.join(trunk) or 'none found'}."
        )
    for name in plan.blocks:
        if isinstance(modules[name], nn.Sequential | nn.ModuleList | nn.ModuleDict):
            kind = type(modules[name]).__name__
            raise ValueError(
                f"plan: {name!r} is a {kind}, which would run an insert as a member. Name the blocks inside it."
            )
    order = list(modules)
    first = min((order.index(name) for name in plan.blocks), default=len(order))
    around = {name for name in trunk if any(inner.startswith(f"{name}.") for inner in plan.blocks)}
    wanted = {name for name in trunk if order.index(name) >= first} | around | set(plan.blocks)
    sequential = {name for name in wanted if isinstance(modules[name], nn.Sequential)}
    return {name: module for name, module in modules.items() if name in wanted - sequential}


def _nest(
    inserts: Mapping[str, Insert], blocks: Mapping[str, nn.Module], plan: Plan, held: Mapping[nn.Module, int]
) -> None:
    """Let the inserts of parts of blocks know the insert of the block around them."""
    for name in plan.blocks:
        around = [outer for outer in inserts if name.startswith(f"{outer}.")]
        if around:
            outer = max(around, key=len)
            alone = held[blocks[name]] == held[blocks[outer]] == 1
            last = alone and runs_last(name.removeprefix(f"{outer}."), blocks[outer])
            inserts[name].lies_in(inserts[outer], last)
