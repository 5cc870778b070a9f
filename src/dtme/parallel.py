"""Models that several processes hold: replicated by DistributedDataParallel, or sharded by `fully_shard` (FSDP2)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dtme._shapes import Float
from dtme.outputs import map_tensors, tensors_of
from dtme.processes import Processes, processes_of
from dtme.streams import Streams, gather, part


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, whose blocks keep the names they have without it."""
    while isinstance(model, DistributedDataParallel):
        model = model.module
    return model


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules of a model that `fully_shard` was called on.

    Example:
        >>> sharded_modules(nn.Linear(2, 2))
        []
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # slow to import, and without it nothing can be sharded
    kind = getattr(fsdp, "FSDPModule", None)
    return [] if kind is None else [module for module in model.modules() if isinstance(module, kind)]


def in_first_process(model: nn.Module, act: Callable[[], None]) -> None:
    """Do something once: in this process or, where the model is sharded, in the first of those that share it.

    The others wait until it is done; an error in it is raised in all.
    """
    sharded = [parameter for parameter in model.parameters() if hasattr(parameter, "device_mesh")]
    if not sharded:
        return act()
    mesh: Any = sharded[0].device_mesh  # pyright: ignore[reportAttributeAccessIssue]
    processes = processes_of(mesh.get_group() if mesh.ndim == 1 else None)
    processes.exchange(lambda: (None, act() if processes.rank == 0 else None))
    return None


def check_not_distributed(model: nn.Module) -> None:
    """Refuse a model whose wrapper would not know of parameters that join it now.

    Raises:
        ValueError: The model is replicated or sharded already.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kinds = (DistributedDataParallel, *(getattr(fsdp, name, ()) for name in ("FSDPModule", "FullyShardedDataParallel")))
    for name, module in model.named_modules():
        if any(isinstance(module, kind) for kind in kinds):
            replicated = isinstance(module, DistributedDataParallel)
            how = "wrapped in DistributedDataParallel" if replicated else "sharded (FSDP)"
            raise ValueError(
                f"apply: {f'module {name!r} of the model' if name else 'the model'} is {how} already: the processes would not "
                "share the gradients of what is inserted now. Apply the plan first, then distribute the model."
            )


@contextmanager
def one_model(model: nn.Module, processes: Processes) -> Iterator[None]:
    """Let all processes hold the same model while the context lasts, and none wait for another without need.

    Parameters have to agree; buffers (such as running statistics, which every replica keeps for itself between two
    training steps) are those of the first process until the end. Replicas stop to send their buffers around before
    each forward pass. What is sharded is sharded again at the end, so that the parameters are those found before.

    Raises:
        ValueError: The parameters of two processes differ.
    """
    for module in sharded_modules(model):
        module.reshard()
    replicas: list[Any] = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    syncing = [(module.require_backward_grad_sync, module.require_forward_param_sync) for module in replicas]
    own: list[tuple[Tensor, Tensor]] = []
    try:
        for module in replicas:
            module.require_backward_grad_sync = module.require_forward_param_sync = False
        if processes.size > 1:
            _check_parameters(model, processes)
            for buffer in _plain(dict(model.named_buffers())).values():
                first = processes.from_first(buffer)
                if not torch.equal(first, buffer):
                    own.append((buffer, buffer.clone()))
                    buffer.copy_(first)
        yield
    finally:
        for buffer, before in own:
            buffer.copy_(before)
        for module, (backward, forward) in zip(replicas, syncing, strict=True):
            module.require_backward_grad_sync, module.require_forward_param_sync = backward, forward
        for module in sharded_modules(model):
            module.reshard()


def _check_parameters(model: nn.Module, processes: Processes) -> None:
    parameters = _plain(dict(model.named_parameters()))
    norms = {name: _norm(parameter.detach()) for name, parameter in parameters.items()}
    told = processes.exchange(lambda: (norms, None))[0]
    for rank, theirs in enumerate(told):
        for name in {**told[0], **theirs}:
            one, other = told[0].get(name), theirs.get(name)
            # Machines of different make round a norm differently; a NaN is as good a sign of the same model as any.
            if one is None or other is None or not (abs(one - other) <= 1e-9 * one or (one != one and other != other)):
                raise ValueError(
                    f"the models of rank 0 and rank {rank} differ, first in {name!r}: several processes analyse one model. Load "
                    "the same weights in all of them, or let each analyse its own: process_group='alone'."
                )


def _plain(tensors: dict[str, Any]) -> dict[str, Float[Tensor, "..."]]:
    """Floating-point tensors that are whole in every process."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if torch.is_floating_point(tensor) and not hasattr(tensor, "full_tensor")
    }


def _norm(parameter: Tensor) -> float:
    return float(torch.linalg.vector_norm(parameter, dtype=torch.float64))


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
