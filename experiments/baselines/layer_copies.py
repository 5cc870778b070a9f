"""A model in which each task has its own copy of some of the shared layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from experiments.baselines.pass_per_task import pass_per_task


class OwnCopies(nn.Module):
    """Runs the model once per task, with that task's copies in the place of some layers.

    The model's own layers serve the first task; every other task starts from a copy of them, so that all outputs are the
    model's at the start. Blocks in front of the first own layer run once for all tasks.

    Args:
        model: Given its inputs it returns a dictionary by task, from the heads in a `ModuleDict`. It becomes a child.
        tasks: Its tasks.
        names: Modules or parameters, by name, of which each task gets its own.

    Attributes:
        model: The model.
        own: Per task but the first, its tensors by name.

    Raises:
        ValueError: A name is unknown, or none is given.

    Example:
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk = nn.Linear(2, 2)
        ...         self.heads = nn.ModuleDict({"depth": nn.Linear(2, 1), "semseg": nn.Linear(2, 3)})
        ...     def forward(self, x):
        ...         features = self.trunk(x)
        ...         return {task: head(features) for task, head in self.heads.items()}
        >>> model = OwnCopies(Model(), ("depth", "semseg"), ["trunk"])
        >>> [(name, parameter.numel()) for name, parameter in model.added_parameters()]
        [('own.semseg.trunk-weight', 4), ('own.semseg.trunk-bias', 2)]
        >>> {task: tuple(output.shape) for task, output in model(torch.ones(5, 2)).items()}
        {'depth': (5, 1), 'semseg': (5, 3)}
    """

    def __init__(self, model: nn.Module, tasks: Sequence[str], names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.tasks = tuple(tasks)
        self.names = tuple(names)
        self.tensors = tuple(_tensors(model, self.names))
        self.own = nn.ModuleDict({task: _copies(model, self.tensors) for task in self.tasks[1:]})

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Each task's output, of a pass through its own layers."""

        def run(task: str) -> Any:
            return functional_call(self.model, self._of(task), args, kwargs)

        return pass_per_task(self.model, self.tasks, self.tensors, run)

    def added_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of what the model did not have."""
        return self.own.named_parameters(prefix="own")

    def _of(self, task: str) -> dict[str, Tensor]:
        if task not in self.own:
            return {}
        own = self.own[task]
        return {name: getattr(own, key_of(name)) for name in self.tensors}


def key_of(name: str) -> str:
    """The name of a tensor as an attribute's, which may hold no dot."""
    return name.replace(".", "-")


def _tensors(model: nn.Module, names: Sequence[str]) -> list[str]:
    every = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    found = {name: [t for t in every if t == name or t.startswith(f"{name}.")] for name in names}
    missing = [name for name, tensors in found.items() if not tensors]
    if missing or not names:
        raise ValueError(
            f"names={tuple(names)}: {f'{missing[0]!r} holds no tensor of this model' if missing else 'there is none'}. "
            f"Give modules or parameters by their whole names, as {every[0]!r}."
        )
    return [tensor for tensor in every if any(tensor in tensors for tensors in found.values())]


def _copies(model: nn.Module, tensors: Sequence[str]) -> nn.Module:
    named = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    copies = nn.Module()
    for name in tensors:
        if name in named:
            value = named[name].detach().clone(memory_format=torch.preserve_format)
            copies.register_parameter(key_of(name), nn.Parameter(value, requires_grad=named[name].requires_grad))
        else:
            copies.register_buffer(key_of(name), buffers[name].detach().clone())
    return copies
