"""A scale and a shift per task behind the last block: the cheapest task-specific thing there is, and so the control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from dtme._shapes import Shaped
from dtme.trunk.branches import leaving_modules


class FinalAffine(nn.Module):
    """Scales and shifts the channels of what enters each task's head; the trunk runs once.

        x <- w_i * x + b_i,    w = 1, b = 0 at the start

    Args:
        model: A multi-task model. It becomes a child.
        tasks: Its tasks.
        width: Channels p of what enters the heads.
        dim: Where the channels are in it: 1 for maps (b, p, h, w), -1 for tokens (b, n, p).
        branches: Task to the module, or its name, where the task leaves the trunk, as for `dtme.apply`.

    Raises:
        ValueError: The heads are not found; on a call, what enters them has not so many channels there.

    Example:
        >>> model = nn.ModuleDict({"heads": nn.ModuleDict({"depth": nn.Linear(8, 1), "semseg": nn.Linear(8, 3)})})
        >>> {name: parameter.numel() for name, parameter in FinalAffine(model, ("depth", "semseg"), 8).added_parameters()}
        {'scale.depth': 8, 'scale.semseg': 8, 'shift.depth': 8, 'shift.semseg': 8}
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[str],
        width: int,
        *,
        dim: int = -1,
        branches: Mapping[str, nn.Module | str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tasks = tuple(tasks)
        self.dim = dim
        places = {module: name for name, module in model.named_modules()}
        self.leaving = tuple((task, places[module]) for task, module in leaving_modules(model, self.tasks, branches))
        like = next(model.parameters()).detach()
        self.scale = nn.ParameterDict({task: nn.Parameter(like.new_ones(width)) for task in self.tasks})
        self.shift = nn.ParameterDict({task: nn.Parameter(like.new_zeros(width)) for task in self.tasks})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs, each head fed through its affine."""
        handles = [
            self.model.get_submodule(place).register_forward_pre_hook(partial(self._enter, task))
            for task, place in self.leaving
        ]
        try:
            return self.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def added_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of what the model did not have."""
        return ((name, p) for name, p in self.named_parameters() if name.startswith(("scale.", "shift.")))

    def _enter(self, task: str, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        features, *rest = args
        return affine(features, self.scale[task], self.shift[task], self.dim), *rest


def affine(
    features: Shaped[Tensor, "..."], scale: Shaped[Tensor, " p"], shift: Shaped[Tensor, " p"], dim: int
) -> Shaped[Tensor, "..."]:
    """`scale * features + shift` along one dimension.

    Raises:
        ValueError: The features have another number of channels there.

    Example:
        >>> import torch
        >>> affine(torch.ones(1, 2, 3), torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0]), dim=1)[0, :, 0].tolist()
        [1.0, 7.0]
    """
    if features.shape[dim] != len(scale):
        raise ValueError(
            f"dim={dim}: what enters the head has the shape {tuple(features.shape)}, with {features.shape[dim]} channels there "
            f"and not width={len(scale)}. Give the dimension of the channels and their number."
        )
    shape = [1] * features.ndim
    shape[dim] = -1
    return scale.view(shape) * features + shift.view(shape)
