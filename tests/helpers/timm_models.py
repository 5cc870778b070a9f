"""Tiny multi-task models on other people's vision trunks, on `nn.TransformerEncoder`, and on trunks written by hand."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from dtme._shapes import Float

TASKS = ("depth", "semseg", "scene")
WIDTH = 16
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 3, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}


class Head(nn.Module):
    """A value per token, or one of their mean."""

    def __init__(self, width: int, outputs: int, pooled: bool):
        super().__init__()
        self.norm, self.project, self.pooled = nn.LayerNorm(width), nn.Linear(width, outputs), pooled

    def forward(self, tokens: Float[Tensor, "b n p"]) -> Tensor:
        values = self.project(self.norm(tokens).tanh())
        return values.mean(1) if self.pooled else values


def heads(width: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {"depth": Head(width, 1, False), "semseg": Head(width, 4, False), "scene": Head(width, 3, True)}
    )


class OnTimm(nn.Module):
    """A timm trunk read by its `forward_features`, whatever layout that has."""

    def __init__(self, trunk: Any):
        super().__init__()
        self.trunk = trunk
        self.width = trunk.num_features
        self.heads = heads(self.width)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        features = self.trunk.forward_features(image)
        if features.ndim == 4 and features.shape[-1] == self.width:
            features = features.flatten(1, 2)
        elif features.ndim == 4:
            features = features.flatten(2).transpose(1, 2)
        return {task: head(features) for task, head in self.heads.items()}


class OnIntermediates(OnTimm):
    """The same trunk read by its `forward_intermediates`: the first block's features, pooled, beside the last ones."""

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        early, late = self.trunk.forward_intermediates(image, indices=[0, -1], intermediates_only=True)
        early = nn.functional.adaptive_avg_pool2d(early, late.shape[-2:]).flatten(2).mean(1).unsqueeze(-1)
        tokens = late.flatten(2).transpose(1, 2) + early
        return {task: head(tokens) for task, head in self.heads.items()}


class Encoder(nn.Module):
    """Pixels as words through `nn.TransformerEncoder`."""

    def __init__(self, batch_first: bool):
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Conv2d(3, WIDTH, 8, stride=8)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=batch_first, norm_first=True)
        self.trunk = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.heads = heads(WIDTH)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        tokens = self.embed(image).flatten(2)
        tokens = self.trunk(tokens.transpose(1, 2) if self.batch_first else tokens.permute(2, 0, 1))
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        return {task: head(tokens) for task, head in self.heads.items()}


class Output(dict):
    """What some libraries return: a dictionary of their own kind, with its entries as attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclass
class Record:
    """What others return."""

    weights: Tensor
    tokens: Tensor


class Block(nn.Module):
    """A block by hand, which returns its tokens and its attention weights."""

    def __init__(self, returns: Callable[[Tensor, Tensor], Any]):
        super().__init__()
        self.returns = returns
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, tokens: Float[Tensor, "b n p"], gain: Float[Tensor, "b 1 1"]) -> Any:
        q, k, v = self.qkv(self.norm1(tokens)).chunk(3, -1)
        weights = (q @ k.mT / WIDTH**0.5).softmax(-1)
        tokens = tokens + gain * self.out(weights @ v)
        return self.returns(tokens + self.mlp(self.norm2(tokens)), weights)


def as_tuple(tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return tokens, weights


def as_mapping(tokens: Tensor, weights: Tensor) -> Output:
    return Output(weights=weights, tokens=tokens)


def as_record(tokens: Tensor, weights: Tensor) -> Record:
    return Record(weights, tokens)


class ByHand(nn.Module):
    """A trunk whose blocks return more than a tensor and may be called by keywords, in another order than declared."""

    def __init__(self, returns: Callable[[Tensor, Tensor], Any], keywords: bool = False):
        super().__init__()
        self.keywords = keywords
        self.embed = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.trunk = nn.ModuleList(Block(returns) for _ in range(3))
        self.heads = heads(WIDTH)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        tokens, gain = self.embed(image).flatten(2).transpose(1, 2), image.mean((1, 2, 3)).view(-1, 1, 1) + 1
        for block in self.trunk:
            output = block(gain=gain, tokens=tokens) if self.keywords else block(tokens, gain)
            tokens = output[0] if isinstance(output, tuple) else output.tokens
        return {task: head(tokens) for task, head in self.heads.items()}


def created(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, num_classes=0, **options)


TIMM: dict[str, Callable[[], nn.Module]] = {
    "ViT": created("vit_tiny_patch16_224", **VIT),
    "ViT, registers": created("vit_tiny_patch16_224", reg_tokens=3, **VIT),
    "ViT, no class token": created("vit_tiny_patch16_224", class_token=False, global_pool="avg", **VIT),
    "DeiT": created("deit_tiny_patch16_224", **VIT),
    "DeiT, distilled": created("deit_tiny_distilled_patch16_224", **VIT),
    "DeiT III": created("deit3_small_patch16_224", **VIT),
    "BEiT": created("beit_base_patch16_224", **VIT),
    "BEiT, shared bias": created("beit_base_patch16_224", use_shared_rel_pos_bias=True, use_rel_pos_bias=False, **VIT),
    "EVA-02": created("eva02_tiny_patch14_224", **VIT),
    "DINOv2": created("vit_small_patch14_dinov2", **VIT),
    "DINOv3": created("vit_small_patch16_dinov3", **VIT),
    "ViT, mixed rotary": created("vit_small_patch16_rope_mixed_224", **VIT),
    "Swin": created("swin_tiny_patch4_window7_224", **SWIN),
    "Swin v2": created("swinv2_tiny_window8_256", **SWIN),
    "PVT v2": created(
        "pvt_v2_b0", depths=(1, 1, 1, 2), embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), mlp_ratios=(2, 2, 2, 2)
    ),
    "hybrid ViT": created("vit_tiny_r_s16_p8_224", **{**VIT, "patch_size": 2}),
    "CoAtNet": created(
        "coatnet_pico_rw_224", img_size=64, embed_dim=(8, 32, 32, 32), depths=(1, 1, 2, 1), stem_width=8
    ),
    "MaxViT": created("maxvit_rmlp_pico_rw_256", img_size=64, embed_dim=(32, 32), depths=(1, 2), stem_width=8),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "torch encoder, batch first": lambda: Encoder(True),
    "torch encoder, tokens first": lambda: Encoder(False),
    "by hand, tuples": lambda: ByHand(as_tuple),
    "by hand, mappings": lambda: ByHand(as_mapping),
    "by hand, records": lambda: ByHand(as_record),
    "by hand, keywords": lambda: ByHand(as_tuple, keywords=True),
}
MODELS = (*TIMM, *OTHERS)

FROM_0_TO_2 = ["trunk.blocks.0", "trunk.blocks.1", "trunk.blocks.2"]
SWIN_BLOCKS = [f"trunk.layers.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1)]
BLOCKS = dict.fromkeys(TIMM, FROM_0_TO_2) | {
    "Swin": SWIN_BLOCKS,
    "Swin v2": SWIN_BLOCKS,
    "PVT v2": [
        f"trunk.stages.{place}" for place in ("0.blocks.0", "1.blocks.0", "2.blocks.0", "3.blocks.0", "3.blocks.1")
    ],
    "CoAtNet": [f"trunk.stages.{place}" for place in ("2.blocks.0", "2.blocks.1", "3.blocks.0")],
    "MaxViT": [f"trunk.stages.{place}" for place in ("0.blocks.0", "1.blocks.0", "1.blocks.1")],
    "torch encoder, batch first": [f"trunk.layers.{block}" for block in range(3)],
    "torch encoder, tokens first": [f"trunk.layers.{block}" for block in range(3)],
    **{name: [f"trunk.{block}" for block in range(3)] for name in OTHERS if name.startswith("by hand")},
}
TIED = {
    "Swin": "the table 'attn.relative_position_index' numbers the pairs of its 16 positions",
    "Swin v2": "the table 'attn.relative_position_index' numbers the pairs of its 16 positions",
    "PVT v2": "Conv2d 'attn.sr' mixes neighbours on a grid",
    "CoAtNet": r"RelPosBias 'attn.rel_pos' is made for windows of \(4, 4\) positions",
    "MaxViT": "AvgPool2d 'conv.shortcut.pool' mixes neighbours on a grid",
}
"""Models whose blocks have no place for task tokens, and what the refusal says of them."""


def make(name: str, kind: Callable[[Any], nn.Module] = OnTimm) -> nn.Module:
    """A model of the zoo in double precision and evaluation mode, its weights moved away from every special value."""
    return copy.deepcopy(_made(name, kind))


@functools.cache
def _made(name: str, kind: Callable[[Any], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(TIMM[name]()) if name in TIMM else OTHERS[name]()
        with torch.no_grad():
            for parameter in model.parameters():  # layer scales near 0 and biases at 0 would hide what goes wrong
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.double().eval()


def images(name: str, samples: int = 3) -> Float[Tensor, "b 3 h w"]:
    side = 64 if name in ("PVT v2", "CoAtNet", "MaxViT") else 32
    return torch.randn(samples, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
