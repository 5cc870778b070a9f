"""Vision transformers of timm as trunks, with pretrained weights, and the decoders behind them."""

from __future__ import annotations

from experiments.dense.backbones.recipe import BackboneRecipe

__all__ = ["BackboneRecipe"]
