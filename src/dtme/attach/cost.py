"""What a plan costs on a model, exactly: a twin of the model carries the plan, and torch's own counter looks on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dtme._pytree import tensors_of
from dtme._wrappers import module_names, modules_by_any_name, run_eagerly, unwrapped
from dtme.attach.apply import apply, is_applied
from dtme.distributed.wrappers import check_not_distributed
from dtme.plan.cost import Cost
from dtme.plan.plan import Plan
from dtme.streams.tensor import Streams
from dtme.trunk.blocks import find_blocks
from dtme.trunk.fast_paths import packing_modules


def cost(
    model: nn.Module,
    plan: Plan,
    batch: Any,
    *,
    task_losses: Callable[[nn.Module, Any], Any] | None = None,
    branches: Mapping[str, nn.Module | str] | None = None,
) -> Cost:
    """What inference of all tasks costs under a plan, before it is applied: FLOPs, and the streams of every block.

    A copy of the model runs twice in evaluation mode, as it is and with the plan applied, and torch's `FlopCounterMode` counts
    both passes, attention as plain products on every device. `ConflictReport.plan(max_cost=...)` goes by arithmetic from one
    plain pass instead: an estimate, which is the same number on all models of `docs/zoo.md`.

    Args:
        model: A model without inserts; it is left as it was found.
        plan: The plan.
        batch: What its forward takes: a tensor, a tuple of arguments, or a dictionary of named ones.
        task_losses: As given to `analyze`; `task_losses(model, batch)` then runs the model, whatever a batch is. Of what it does,
            only what the model's modules compute is counted, and nothing goes backward.
        branches: Where tasks leave the trunk, as in `apply`.

    Raises:
        ValueError: The plan does not fit the model, the model has inserts already, or it does not run.

    Example:
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        ...         self.trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        ...         self.heads = nn.ModuleDict({"depth": nn.Linear(8, 1), "semseg": nn.Linear(8, 3)})
        ...     def forward(self, x):
        ...         tokens = self.trunk(x)
        ...         return {task: head(tokens) for task, head in self.heads.items()}
        >>> plan = Plan(("depth", "semseg"), modulate={"trunk.layers.1": ("depth", "semseg")})
        >>> found = cost(Model(), plan, torch.randn(2, 5, 8))
        >>> found.streams, round(found.ratio, 2)
        ({'trunk.layers.0': 1, 'trunk.layers.1': 2}, 1.49)
    """
    if is_applied(model):
        raise ValueError(
            "cost: this model has inserts already, and a plan's cost is told against the plain model. Ask before apply, or for "
            "dtme.remove(copy.deepcopy(model))."
        )
    check_not_distributed(model)
    named = None if branches is None else {task: _name_in(model, task, module) for task, module in branches.items()}
    twin = copy.deepcopy(unwrapped(model)).eval()
    for module in packing_modules(twin).values():
        module.use_nested_tensor = False
    run = partial(_run, twin, batch, task_losses)
    devices = {parameter.device.index for parameter in twin.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)), torch.no_grad(), run_eagerly():
        plain = _count(twin, run)
        if plain == 0:
            raise ValueError(
                "cost: no product ran in the model. Let task_losses run the model that it is given, a copy."
            )
        apply(twin, plan, branches=named)
        with _watch_streams(twin, plan) as streams:
            flops = _count(twin, run)
    return Cost(flops, plain, streams)


@contextmanager
def plain_products() -> Iterator[None]:
    """Attention as the products it is made of, which torch's counter knows on every device, while the context lasts."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _run(model: nn.Module, batch: Any, task_losses: Callable[[nn.Module, Any], Any] | None) -> None:
    if task_losses is not None:
        task_losses(model, batch)
    elif isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)


def _count(model: nn.Module, run: Callable[[], None]) -> int:
    """FLOPs of what runs in modules of a model."""
    from torch.utils.flop_counter import FlopCounterMode  # loads triton where it is installed

    total = before = depth = 0

    def begin(*_: Any) -> None:
        nonlocal before, depth
        before = before if depth else counter.get_total_flops()
        depth += 1

    def end(*_: Any) -> None:
        nonlocal total, depth
        depth -= 1
        total += 0 if depth else counter.get_total_flops() - before

    with plain_products(), FlopCounterMode(display=False) as counter:
        handles = [module.register_forward_pre_hook(begin) for module in model.modules()]
        handles += [module.register_forward_hook(end) for module in model.modules()]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
    return total


@contextmanager
def _watch_streams(model: nn.Module, plan: Plan) -> Iterator[dict[str, int]]:
    """How many streams each block hands on, by the order in which they run."""
    try:
        trunk = find_blocks(model)
    except ValueError:
        trunk = {}
    modules = modules_by_any_name(model)
    named = {**trunk, **{name: modules[name] for name in plan.blocks}}
    streams: dict[str, int] = {}

    def note(name: str, block: nn.Module, args: Any, output: Any) -> None:
        parted = (len(tensor._groups) for tensor in tensors_of(output) if isinstance(tensor, Streams))
        streams[name] = max(parted, default=1)

    handles = [
        block.register_forward_hook(partial(note, name))
        for name, block in named.items()
        if not any(name.startswith(f"{other}.") for other in named)
    ]
    try:
        yield streams
    finally:
        for handle in handles:
            handle.remove()


def _name_in(model: nn.Module, task: str, module: nn.Module | str) -> str:
    if isinstance(module, str):
        return module
    name = module_names(model).get(module)
    if name is None:
        raise ValueError(f"branches[{task!r}]: this {type(module).__name__} is no module of the model.")
    return name
