"""A state dict that carries its plan: a fresh model that loads it gets the plan first, and then the weights."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from dtme._files import MOST_BYTES, read_json
from dtme.attach.load_check import CARRIED, explain_inserts
from dtme.checkpoint.plan_file import FORMAT, adopt, described
from dtme.distributed.wrappers import sharded_modules

_OPTIMIZERS: WeakKeyDictionary[nn.Module, ReferenceType[Any]] = WeakKeyDictionary()
"""Of models that carry their plan, the optimizers that follow: beside the model, so that its copies have none."""


def carry_plan(model: nn.Module, *, optimizer: Any = None) -> nn.Module:
    """Let the state dicts of a model carry its plan, and the model take the plan of those that it loads.

    Opt-in, since it adds a key, whose value is the plan as the bytes of its JSON. So it passes through `torch.save`,
    safetensors, Lightning's `load_from_checkpoint`, accelerate and Trainer. Call it where the model is made, in `__init__`
    for instance. A state dict that was saved before the plan was applied says so, and takes it out again: no early trunk
    ends up beside late inserts. One without the key is loaded as ever.

    A sharded model (FSDP) carries none, since its state dicts are put together from parameters: `save_plan` writes the plan
    beside them.

    Args:
        model: With or without inserts, or a module around one, such as a LightningModule.
        optimizer: Made with `parameter_groups`; its group follows when another plan is loaded.

    Returns:
        The same model.

    Example:
        >>> from dtme.attach.apply import apply, plan_of
        >>> def fresh():
        ...     layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        ...     trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        ...     heads = nn.ModuleDict({"depth": nn.Linear(8, 1), "semseg": nn.Linear(8, 3)})
        ...     return carry_plan(nn.ModuleDict({"trunk": trunk, "heads": heads}))
        >>> from dtme.plan.plan import Plan
        >>> model = apply(fresh(), Plan(("depth", "semseg"), modulate={"trunk.layers.1": ("depth", "semseg")}))
        >>> again = fresh()
        >>> again.load_state_dict(model.state_dict())
        <All keys matched successfully>
        >>> plan_of(again) == plan_of(model)
        True
    """
    if _before_loading not in [getattr(hook, "hook", hook) for hook in model._load_state_dict_pre_hooks.values()]:
        model.register_state_dict_post_hook(_after_saving)
        model.register_load_state_dict_pre_hook(_before_loading)
    if optimizer is not None:
        _OPTIMIZERS[model] = ref(optimizer)
    return model


def explain_loading(model: nn.Module) -> None:
    """Let a model say so where it loads inserts of which it has no plan."""
    if explain_inserts not in model._load_state_dict_post_hooks.values():
        model.register_load_state_dict_post_hook(explain_inserts)


def _after_saving(model: nn.Module, state: MutableMapping[str, Any], prefix: str, metadata: Any) -> None:
    if not sharded_modules(model):
        text = json.dumps(described(model))
        state[prefix + CARRIED] = torch.tensor(list(text.encode()), dtype=torch.uint8)


def _before_loading(model: nn.Module, state: MutableMapping[str, Any], prefix: str, *others: Any) -> None:
    carried = state.pop(prefix + CARRIED, None)
    if not isinstance(carried, Tensor):
        return
    follower = _OPTIMIZERS.get(model)
    source = f"the plan in the state dict ({prefix}dtme_plan)"
    if carried.dtype != torch.uint8 or carried.ndim != 1 or len(carried) > MOST_BYTES:
        raise ValueError(
            f"{source} is a tensor of {carried.dtype} and shape {tuple(carried.shape)}, expected the bytes of a text."
        )
    told = read_json(bytes(carried.tolist()).decode(errors="replace"), FORMAT, source)
    adopt(model, told, source=source, optimizer=None if follower is None else follower())
