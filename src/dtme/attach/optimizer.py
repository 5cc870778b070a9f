"""Optimizer and schedule: a group is reserved from the start, and a plan that is applied in training fills it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from dtme._wrappers import unwrapped
from dtme.attach.apply import added_parameters, apply, find_applied, is_applied
from dtme.attach.optimizer_group import MARK, fill, reserved_group
from dtme.attach.replan import replan
from dtme.distributed.gradient_sharing import replicate
from dtme.distributed.processes import processes_of
from dtme.distributed.wrappers import check_not_distributed
from dtme.plan.plan import Plan

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FASTER = 3.0
"""How many times faster than the trunk inserts learn, unless it is said otherwise."""


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    insert_lr: float | None = None,
    groups: Iterable[Mapping[str, Any]] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Groups for an optimizer: the model's own parameters, and one more for what a plan adds, without weight decay.

    The last group is empty until `expand` applies a plan, and then filled in place, so that schedulers and the optimizer's
    state find as many groups as ever. Of a model that a plan has been applied to already, it holds what was added.

    Args:
        model: The model, with or without inserts.
        lr: Learning rate of the model's own parameters.
        insert_lr: Learning rate of what a plan adds; by default three times `lr`.
        groups: Groups of your own for the model's own parameters, from timm's `param_groups_layer_decay` say; what was
            inserted is left out of them. By default one group of all parameters that are trained.
        options: Further options of all of the model's own groups, `weight_decay=0.05`.

    Raises:
        ValueError: A learning rate is not positive, or nothing of the model is trained.

    Example:
        >>> from torch.optim import AdamW
        >>> model = nn.Linear(2, 2)
        >>> optimizer = AdamW(parameter_groups(model, lr=1e-3, weight_decay=0.05))
        >>> [(len(group["params"]), group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        [(2, 0.001, 0.05), (0, 0.003, 0.0)]
    """
    insert_lr = FASTER * lr if insert_lr is None else insert_lr
    for name, rate in (("lr", lr), ("insert_lr", insert_lr)):
        if not (isinstance(rate, torch.Tensor) or rate > 0):
            raise ValueError(f"parameter_groups({name}={rate!r}): give a positive learning rate.")
    added = list(added_parameters(model))
    inserted = {id(parameter) for _, parameter in added}
    if groups is None:
        groups = [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]
    own = [_without(inserted, group) for group in groups]
    if not any(group["params"] for group in own):
        raise ValueError("parameter_groups: no parameter of the model is trained. Call requires_grad_(True) on some.")
    reserved: dict[str, Any] = {"params": [p for _, p in added], "lr": insert_lr, "weight_decay": 0.0, MARK: True}
    if any(isinstance(member, tuple) for group in own for member in group["params"]):  # torch wants all named, or none
        reserved |= {"params": added} if added else {"param_names": []}
    return [*({"lr": lr, **options, **group} for group in own), reserved]


def expand(
    model: nn.Module,
    optimizer: Any,
    plan: Plan,
    *,
    branches: Mapping[str, nn.Module | str] | None = None,
    process_group: ProcessGroup | Literal["alone"] | None = None,
) -> nn.Module:
    """Apply a plan in the midst of training, and let the optimizer train what it adds.

    Call it between two steps, once gradients are set to zero. A model that has a plan already gets the new one in its place:
    what both plans have keeps its values, and its state in the optimizer where a parameter serves the same tasks; what goes
    leaves the optimizer, too.

    Where torch.distributed is initialised, every process has to call; all begin with the first one's inserts and average
    their gradients, as DistributedDataParallel does with the parameters that it knew when it wrapped the model.

    Args:
        model: The model, or DistributedDataParallel around it.
        optimizer: Made with `parameter_groups`.
        plan: From a report, or written by hand.
        branches: As in `apply`.
        process_group: The processes that train this model together: `None` is the group of DistributedDataParallel, or the
            default group where torch.distributed is initialised; `"alone"` is this process and no other.

    Returns:
        The same model.

    Raises:
        ValueError: The optimizer has no reserved group, or is DeepSpeed's; the model is sharded (FSDP), for which a plan is
            applied before; or the plan does not fit. The model is left as it was.

    Example:
        >>> heads = nn.ModuleDict({"depth": nn.Linear(8, 1), "semseg": nn.Linear(8, 3)})
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> model = nn.ModuleDict({"trunk": trunk, "heads": heads})
        >>> optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-3))
        >>> schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[1e-2, 3e-2], total_steps=100)
        >>> tasks = ("depth", "semseg")
        >>> _ = expand(model, optimizer, Plan(tasks, modulate={"trunk.layers.1": tasks}))
        >>> [parameter.shape for parameter in optimizer.param_groups[-1]["params"]]
        [torch.Size([2, 8]), torch.Size([2, 8])]
    """
    group = reserved_group(optimizer, "expand")
    inner = unwrapped(model)
    if process_group is None and inner is not model:
        process_group = getattr(model, "process_group", None)
    processes = processes_of(process_group)
    if is_applied(inner):
        check_not_distributed(inner)
        replan(inner, plan, branches=branches)
    else:
        apply(inner, plan, branches=branches)
    if processes.size > 1:
        shared = [parameter for _, parameter in added_parameters(inner)]
        find_applied(inner)[1].handles.append(replicate(inner, shared, processes))
    fill(group, optimizer, added_parameters(inner))
    return model


def _without(inserted: set[int], group: Mapping[str, Any]) -> dict[str, Any]:
    """A group without what was inserted; its members may be named."""
    members = group["params"]
    members = [members] if isinstance(members, torch.Tensor) else list(members)
    own = [member for member in members if id(member[1] if isinstance(member, tuple) else member) not in inserted]
    return {**group, "params": own}
