"""Several processes that train one model, as `accelerate launch` and `torchrun` start them: who is first, who waits for whom."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

_BUCKET = 25_000_000
"""Numbers that are sent at once."""


def place() -> tuple[int, int]:
    """Rank of this process and how many there are: 0 of 1 where they are no group.

    >>> place()
    (0, 1)
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextmanager
def joined(device: str) -> Iterator[str]:
    """A group of the processes that a launcher has started, while it lasts; none where there is but this one.

    Args:
        device: `cpu` or `cuda`; of several processes each takes the GPU of its place on the machine.

    Yields:
        The device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield device
        return
    own = device
    if device == "cuda":
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield own
    finally:
        distributed.destroy_process_group()


def wait() -> None:
    """Go on once all processes are here."""
    if place()[1] > 1:
        distributed.barrier()


def by_first(write: Callable[[], object]) -> None:
    """Do something in the first process alone; the others go on once it is done."""
    if place()[0] == 0:
        write()
    wait()


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Give every parameter the mean of the gradients of all processes; where one has none, it counts as zero."""
    processes = place()[1]
    if processes == 1:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in trained if parameter.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        distributed.all_reduce(flat)
        flat /= processes
        for gradient, mean in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def share_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the first one, as the statistics of batch norms."""
    if place()[1] > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(own.numel() for own in bucket) + tensor.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
