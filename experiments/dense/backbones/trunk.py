"""Trunks by timm's names: what they measure, and how one is made for images of any size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from experiments.dense.backbones.recipe import BackboneRecipe

FIELD = {f"vit_{size}": f"vit_{size}_patch16_384" for size in ("tiny", "small", "base", "large")}
"""The short names of those that tables are made with, and what timm calls them."""

TAG = "augreg_in21k_ft_in1k"
"""The weights of the field: trained on ImageNet-21K, then on ImageNet-1K at 384 pixels."""


@dataclass(frozen=True)
class Shape:
    """What a trunk measures.

    Attributes:
        width: Channels of the tokens.
        depth: Blocks.
        attention_heads: Of each block's attention.
        mlp_width: Channels inside a block's MLP, in multiples of `width`.
        patch: Pixels a side of a patch.
    """

    width: int
    depth: int
    attention_heads: int
    mlp_width: float
    patch: int


def timm_name(backbone: str) -> str:
    """What timm calls a trunk, with the tag of its weights if one was given.

    >>> timm_name("vit_tiny"), timm_name("vit_tiny.augreg_in21k"), timm_name("vit_small_patch14_dinov2.lvd142m")
    ('vit_tiny_patch16_384', 'vit_tiny_patch16_384.augreg_in21k', 'vit_small_patch14_dinov2.lvd142m')
    """
    name, dot, tag = backbone.partition(".")
    return FIELD.get(name, name) + dot + tag


@lru_cache(maxsize=8)
def shape_of(backbone: str) -> Shape:
    """What a trunk of timm's measures, found without making its weights.

    Raises:
        ValueError: timm has no such model, or it is no plain vision transformer.
    """
    name = timm_name(backbone).partition(".")[0]
    if not timm.is_model(name):
        alike = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:6]) or "none"
        raise ValueError(
            f"backbone={backbone!r}: timm {timm.__version__} has no model of that name. Choose one of {', '.join(FIELD)}, or a "
            f"vision transformer by timm's name (like it: {alike})."
        )
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=0)
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"backbone={backbone!r} is a {type(model).__name__}, and trunks here are plain vision transformers: choose one of "
            f"{', '.join(FIELD)}, or another of timm's vit_ models."
        )
    block: Any = model.blocks[0]
    width = int(model.embed_dim)
    return Shape(
        width,
        len(model.blocks),
        int(block.attn.num_heads),
        block.mlp.fc2.in_features / width,
        int(model.patch_embed.patch_size[0]),
    )


def make_trunk(recipe: BackboneRecipe) -> VisionTransformer:
    """The trunk of a recipe with random weights; positions are made for the recipe's size."""
    trunk: Any = timm.create_model(
        timm_name(recipe.backbone).partition(".")[0],
        img_size=recipe.height_width,
        patch_size=recipe.patch,
        embed_dim=recipe.width,
        depth=recipe.depth,
        num_heads=recipe.attention_heads,
        mlp_ratio=recipe.mlp_width,
        drop_path_rate=recipe.drop_path,
        num_classes=0,
        global_pool="",
    )
    return trunk


def autocast(images: torch.Tensor, recipe: BackboneRecipe) -> torch.autocast:
    """The context of a pass in the recipe's precision."""
    return torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")
