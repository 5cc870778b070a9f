"""Models that several processes hold: replicated by DistributedDataParallel, or sharded by `fully_shard` (FSDP2)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dtme._shapes import Float
from dtme.distributed.processes import Processes, processes_of


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
