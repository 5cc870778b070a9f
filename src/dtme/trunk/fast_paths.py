"""Fast ways through a model that would pass hooks by, and the switches that turn them off."""

from __future__ import annotations

from typing import Any

from torch import nn


def packing_modules(model: nn.Module) -> dict[str, Any]:
    """Modules that would pack a padded batch into a nested tensor in evaluation, which has no shape for hooks to read.

    `nn.TransformerEncoder` does so by default; with its `use_nested_tensor` off it computes the same on padded tokens.
    """
    return {name: module for name, module in model.named_modules() if getattr(module, "use_nested_tensor", False)}


def fused_projections(block: nn.Module) -> dict[str, Any]:
    """Attention that uses the weight of its `qkv` layer without calling the layer, where nothing can be added by row.

    timm does so where queries and values alone have a bias; with `qkv_bias_separate` on it calls the layer and adds the
    biases after it, the same sum.
    """
    return {
        name: module
        for name, module in block.named_modules()
        if getattr(module, "qkv_bias_separate", None) is False and getattr(module, "q_bias", None) is not None
    }
