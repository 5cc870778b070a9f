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

from dtme._wrappers import modules_by_name, unwrapped
from dtme.attach.compiled_blocks import check_not_compiled
from dtme.attach.diagnostics import name_block
from dtme.attach.gradient_check import FirstBackward, watch
from dtme.attach.hooks import enter, leave
from dtme.attach.load_check import explain_inserts
from dtme.attach.optimizer_group import release
from dtme.attach.passed_by import watch_for_passing_by
from dtme.attach.size_check import check_size
from dtme.distributed.gradient_sharing import GradientSharing
from dtme.distributed.wrappers import check_not_distributed
from dtme.inserts.insert import Insert, inserts_of
from dtme.inserts.layer_updates import update_layers
from dtme.inserts.variants import Exchanged, run_variants
from dtme.plan.plan import Plan
from dtme.streams.routing import Routing, begin_pass, end_pass, leave_trunk, owner_of
from dtme.trunk.attention import Opened
from dtme.trunk.blocks import find_blocks, holders_of, runs_last
from dtme.trunk.branches import branch_names, leaving_modules
from dtme.trunk.fast_paths import fused_projections, packing_modules
from dtme.trunk.layout import width_of
from dtme.trunk.relative_bias import Widened, spanning_tables, widen


@dataclass
class Applied:
    """What `apply` did to a model: enough to route its passes and to take it back.

    Attributes:
        branches: Where tasks leave the trunk, by name, if `apply` was told.
    """

    plan: Plan
    branches: dict[str, str] | None
    routing: Routing
    blocks: dict[str, nn.Module]
    packing: dict[str, Any]
    fused: dict[str, Any]
    handles: list[RemovableHandle | Opened | Widened | Exchanged | GradientSharing]
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
        raise ValueError(
            "apply: this model has inserts already. Call dtme.remove(model) to begin anew, or change its plan in training, "
            "dtme.expand(model, optimizer, plan): what both plans have goes on as it is."
        )
    check_not_distributed(model)
    given, model = model, unwrapped(model)
    blocks = _blocks_of_plan(model, plan)
    leaving = leaving_modules(model, plan.tasks, branches)
    routing = Routing(model, plan.tasks)
    check_size(model, plan, blocks)
    with torch.inference_mode(False):  # what is made in that mode cannot be trained
        inserts = {
            name: Insert(name, block, plan, routing, width_of(block)).to(_device_of(block))
            for name, block in blocks.items()
        }
    check_not_compiled(blocks, plan)
    holders = holders_of(model)
    _nest(inserts, blocks, plan, holders)
    shared = {module for module, count in holders.items() if count > 1}
    handles: list[Any] = []
    for name, block in blocks.items():
        insert = inserts[name]
        # A part of a block may be in evaluation by itself, and then its copies are.
        modes = [(module, module.training) for module in insert.copies.modules()]
        insert.train(block.training)
        for module, training in modes:
            module.training = training
        bare = unwrapped(block)
        bare.dtme = insert
        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        # Prepended: hooks that others have put on the block, to collect hidden states say, get what the block hands on.
        handles.append(block.register_forward_hook(leave, with_kwargs=True, prepend=True))
        handles.append(block.register_forward_hook(name_block, always_call=True))
        if insert.adapted:
            handles += update_layers(insert.host, bare, insert.calls, insert.low_rank, shared, plan.adapt_layers)
        if insert.copied or insert.apart:
            handles.append(run_variants(bare, insert.host, insert.calls, insert.copied, insert.apart))
        handles += [widen(attention) for attention in spanning_tables(block).values()] if insert.expanded else []
    for task, module in leaving:
        handles.append(module.register_forward_pre_hook(partial(leave_trunk, routing, task), with_kwargs=True))
    handles.append(model.register_forward_pre_hook(partial(begin_pass, routing), with_kwargs=True))
    handles.append(model.register_forward_hook(partial(end_pass, routing), always_call=True))
    handles.append(model.register_load_state_dict_post_hook(explain_inserts))
    handles += watch_for_passing_by(model, blocks, inserts)
    packing = packing_modules(model)
    for module in packing.values():
        module.use_nested_tensor = False
    fused = {f"{name}.{own}": m for name in plan.adapt for own, m in fused_projections(blocks[name]).items()}
    for module in fused.values():
        module.qkv_bias_separate = True
    _forget_compiled()
    placed = (plan.modulate, plan.expand, plan.adapt, plan.copies)
    first_backward = watch(model, routing, {task for place in placed for tasks in place.values() for task in tasks})
    named = None if branches is None else branch_names(model, branches)
    applied = Applied(plan, named, routing, blocks, packing, fused, handles, first_backward)
    object.__setattr__(model, "_dtme", applied)
    return given


def remove(model: nn.Module, optimizer: Any = None) -> nn.Module:
    """Take out what `apply` put in: outputs, state-dict keys and hooks are those of the model before.

    Training since then may have changed the model's own parameters; they stay as trained. A model that no plan has been
    applied to is left as it is.

    Args:
        model: The model.
        optimizer: One that trains what goes: it, and its state, leave the optimizer, whose groups stay.

    Returns:
        The same model.

    Raises:
        ValueError: The plan was applied to a model around this one.
    """
    if not is_applied(model):
        return model
    owner, applied = find_applied(model)
    if optimizer is not None:
        release(optimizer, (parameter for _, parameter in added_parameters(owner)))
    applied.first_backward.stop()
    for handle in applied.handles:
        handle.remove()
    for block in applied.blocks.values():  # the modules themselves: one may have been replaced in the model since
        unwrapped(block)._modules.pop("dtme", None)
    for encoder in applied.packing.values():
        encoder.use_nested_tensor = True
    for attention in applied.fused.values():
        attention.qkv_bias_separate = False
    del owner._dtme
    _forget_compiled()
    return model


def added_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of what `apply` added; nothing where no plan has been applied.

    Raises:
        ValueError: The plan was applied to a model around this one.
    """
    if not is_applied(model):
        return iter(())
    find_applied(model)
    return (
        (f"{name}.{own}", parameter)
        for name, insert in model.named_modules()
        if isinstance(insert, Insert)
        for own, parameter in insert.named_parameters()
    )


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that has been applied to a model, or to one inside a wrapper; `None` where there is none.

    Raises:
        ValueError: The plan was applied to a model around this one.

    Example:
        >>> plan_of(nn.Linear(2, 2)) is None
        True
    """
    return find_applied(model)[1].plan if is_applied(model) else None


def is_applied(model: nn.Module) -> bool:
    """Whether a plan has been applied to the model, to a module in it, or to one around it."""
    return bool(inserts_of(model)) or any("_dtme" in vars(module) for module in model.modules())


def find_applied(model: nn.Module) -> tuple[nn.Module, Applied]:
    """The module `apply` was called on, the model itself or one inside a wrapper, and what was done to it.

    Raises:
        ValueError: No plan has been applied.
    """
    return owner_of(model)


def _forget_compiled() -> None:
    """Code that was compiled takes no notice of hooks that come or go later; it is compiled again when next called."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _device_of(block: nn.Module) -> torch.device:
    return next((p.device for p in block.parameters()), torch.device("cpu"))


def _blocks_of_plan(model: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    """The plan's blocks and, so that streams stay folded, every block of the trunk behind the first of them or around one."""
    modules = modules_by_name(model)
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
        if isinstance(unwrapped(modules[name]), nn.Sequential | nn.ModuleList | nn.ModuleDict):
            kind = type(unwrapped(modules[name])).__name__
            raise ValueError(
                f"plan: {name!r} is a {kind}, which would run an insert as a member. Name the blocks inside it."
            )
    order = list(modules)
    first = min((order.index(name) for name in plan.blocks), default=len(order))
    around = {name for name in trunk if any(inner.startswith(f"{name}.") for inner in plan.blocks)}
    wanted = {name for name in trunk if order.index(name) >= first} | around | set(plan.blocks)
    sequential = {name for name in wanted if isinstance(unwrapped(modules[name]), nn.Sequential)}
    blocks = {name: module for name, module in modules.items() if name in wanted - sequential}
    taken = [name for name, block in blocks.items() if hasattr(block, "dtme")]
    if taken:
        raise ValueError(
            f"plan: block {taken[0]!r} has an attribute called 'dtme' of its own, which an insert would overwrite. Rename it."
        )
    return blocks


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
