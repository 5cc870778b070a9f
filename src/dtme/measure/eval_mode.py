"""A model and its batches as the analysis wants them, and the model afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dtme._pytree import map_tensors, tensors_of
from dtme._wrappers import run_eagerly
from dtme.trunk.fast_paths import packing_modules


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, tokens as plain tensors and parameters that need no gradient, while the context lasts.

    Gradients are on, whatever is off around it: `no_grad`, or `inference_mode`. Nothing runs as compiled, since code that was
    compiled before takes no notice of the hooks that an analysis puts on modules.
    """
    modes = [(module, module.training) for module in model.modules()]
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    packing = packing_modules(model).values()
    try:
        model.eval()
        for module in packing:
            module.use_nested_tensor = False
        for parameter, _ in needs:
            parameter.requires_grad_(False)
        with run_eagerly(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter, need in needs:
            parameter.requires_grad_(need)
        for module, training in modes:
            module.training = training
        for module in packing:
            module.use_nested_tensor = True


def differentiable_batch(batch: Any) -> Any:
    """The batch with tensors that gradients can go past: copies of those that were made within `inference_mode`.

    Example:
        >>> with torch.inference_mode():
        ...     features = torch.ones(2)
        >>> differentiable_batch({"features": features})["features"].is_inference()
        False
    """
    if any(tensor.is_inference() for tensor in tensors_of(batch)):
        return map_tensors(batch, _usable)
    return batch


def _usable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
