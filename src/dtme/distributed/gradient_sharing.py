"""Gradients that DistributedDataParallel does not know of, averaged over the processes as it averages its own.

It notes a model's parameters when it wraps it. What joins later would go its own way in every process, without a word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from dtme.distributed.processes import Processes


class GradientSharing:
    """Averages the gradients of some parameters over the processes, once at the end of each backward pass.

    All in one message, whichever of them got a gradient: processes may have read other tasks, and come to their parameters in
    other orders. A gradient that no process has stays `None`. The pass is noted by a hook on every parameter of the model,
    since a process may reach none of the shared ones and still has to take part.

    As with DistributedDataParallel, every process has to run the same number of backward passes. What accumulates over
    several of them comes out as their mean, too: what is equal in all processes is not changed by averaging again.
    """

    def __init__(self, model: nn.Module, shared: Sequence[nn.Parameter], processes: Processes) -> None:
        self.shared, self.processes = tuple(shared), processes
        self._task = -1
        watched = [parameter for parameter in model.parameters() if parameter.requires_grad]
        note = partial(_accumulated, ref(self))  # held where the garbage collector does not look
        self._hooks = [parameter.register_post_accumulate_grad_hook(note) for parameter in watched]

    def remove(self) -> None:
        """Take the hooks out."""
        for hook in self._hooks:
            hook.remove()

    def __reduce__(self) -> tuple[type[_Alone], tuple[()]]:
        """A copy of the model, an average of its weights say, is no replica: its parameters are its own."""
        return _Alone, ()

    def _accumulated(self) -> None:
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            Variable._execution_engine.queue_callback(partial(self._share))

    def _share(self) -> None:
        self._task = -1
        by_kind: defaultdict[Any, list[nn.Parameter]] = defaultdict(list)
        for parameter in self.shared:
            by_kind[parameter.device, parameter.dtype].append(parameter)
        for parameters in by_kind.values():
            self._average(parameters)

    @torch.no_grad()
    def _average(self, parameters: list[nn.Parameter]) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients]).div_(self.processes.size)
        has = flat.new_tensor([float(parameter.grad is not None) for parameter in parameters])
        flat = self.processes.total(torch.cat([flat, has]))
        *means, has = flat.split([*(parameter.numel() for parameter in parameters), len(parameters)])
        for parameter, mean, count in zip(parameters, means, has.tolist(), strict=True):
            if not count:
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(mean.view_as(parameter))


def _accumulated(sharing: ReferenceType[GradientSharing], parameter: Tensor) -> None:
    alive = sharing()
    if alive is not None:
        alive._accumulated()


class _Alone:
    """What is left of a `GradientSharing` in a copy of the model."""

    def remove(self) -> None:
        """Nothing is shared."""


def replicate(model: nn.Module, shared: Sequence[nn.Parameter], processes: Processes) -> GradientSharing:
    """Give all processes the first one's values of some parameters of a model, and share their gradients from now on."""
    with torch.no_grad():
        for parameter in shared:
            parameter.copy_(processes.from_first(parameter))
    return GradientSharing(model, shared, processes)
