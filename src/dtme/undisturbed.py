"""A model as the analysis wants it, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dtme.blocks import packing_modules


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, tokens as plain tensors and parameters that need no gradient, while the context lasts."""
    modes = [(module, module.training) for module in model.modules()]
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    packing = packing_modules(model).values()
    try:
        model.eval()
        for module in packing:
            module.use_nested_tensor = False
        for parameter, _ in needs:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter, need in needs:
            parameter.requires_grad_(need)
        for module, training in modes:
            module.training = training
        for module in packing:
            module.use_nested_tensor = True
