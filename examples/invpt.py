"""A decoder in which tasks meet: InvPT on a plain vision transformer, with `dtme` on its trunk.

After the equations of Ye and Xu, "Inverted Pyramid Multi-task Transformer for Dense Scene Understanding", ECCV 2022.
As there: a shared trunk; a preliminary decoder per task, whose prediction is supervised and fed back; three stages that
attend over the positions of all tasks together while resolution doubles and channels halve; queries and keys on coarser
grids; attention scores handed from stage to stage; features of earlier trunk blocks joining at each scale; all scales
summed for the final predictions. Smaller here: a trunk of six narrow blocks that starts from random weights, two
attention heads, 64x64 images.

What `dtme` needs to know is where a task leaves the trunk. Here that is its preliminary decoder: it takes the features
of every scale, from before and after streams part, and hands on those of its own stream. Behind it the tasks meet.

    python examples/invpt.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import dtme
from dtme._shapes import Float
from scenes import CHANNELS, LOSSES, Batch, draw, train


class Left(NamedTuple):
    """What one task takes out of the trunk: its feature, its preliminary prediction, and earlier features, late to early."""

    feature: Float[Tensor, "b c h w"]
    preliminary: Float[Tensor, "b out h w"]
    earlier: list[Float[Tensor, "b e h w"]]


class Prediction(NamedTuple):
    """A task's predictions at the size of the image."""

    final: Float[Tensor, "b out H W"]
    preliminary: Float[Tensor, "b out H W"]


class ConvUnit(nn.Sequential):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class PreliminaryDecoder(nn.Module):
    """Where one task leaves the trunk: a feature, a first prediction from it, and the two combined."""

    def __init__(self, width: int, channels: int, outputs: int) -> None:
        super().__init__()
        self.units = nn.Sequential(ConvUnit(width, channels), ConvUnit(channels, channels))
        self.predict = nn.Conv2d(channels, outputs, 1)
        self.combine = nn.Conv2d(channels + outputs, channels, 1)

    def forward(self, levels: Sequence[Float[Tensor, "b e h w"]]) -> Left:
        """From the trunk's features, early to late."""
        feature = self.units(levels[-1])
        preliminary = self.predict(feature)
        return Left(self.combine(torch.cat([feature, preliminary], 1)), preliminary, list(levels[-2::-1]))


class CrossTaskAttention(nn.Module):
    """Every position of every task attends to every position of every task, on coarser grids.

    A_s = Q K^T / sqrt(d);    A_s <- alpha_1 A_s + alpha_2 up(A_{s-1});    softmax(A_s) V

    Queries lie on a grid half as fine as the features; keys and values on one grid for all stages.
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.key_value = nn.Conv2d(channels, 2 * channels, reduction, stride=reduction)
        self.alpha = nn.Parameter(torch.ones(2))
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(
        self, x: Float[Tensor, "b t c h w"], passed: Float[Tensor, "b g t n h/4 w/4"] | None
    ) -> tuple[Float[Tensor, "b t c h w"], Float[Tensor, "b g t n h/2 w/2"]]:
        """What each position receives, and the scores to pass on; g attention heads, n keys of all t tasks."""
        b, t = x.shape[:2]
        flat = x.flatten(0, 1)
        query = self.query(flat).unflatten(0, (b, t)).unflatten(2, (self.heads, -1))  # b t g d h/2 w/2
        pairs = self.key_value(flat).unflatten(0, (b, t)).unflatten(2, (2, self.heads, -1))  # b t 2 g d y x
        key, value = pairs.movedim(1, 4).flatten(4).unbind(1)  # b g d n
        scores = torch.einsum("btgdhw,bgdn->bgtnhw", query, key) / math.sqrt(key.shape[2])
        if passed is not None:
            finer = F.interpolate(passed.flatten(0, 2), scale_factor=2, mode="bilinear")
            scores = self.alpha[0] * scores + self.alpha[1] * finer.unflatten(0, scores.shape[:3])
        received = torch.einsum("bgtnhw,bgdn->btgdhw", scores.softmax(3), value).flatten(2, 3)
        received = F.interpolate(self.out(received.flatten(0, 1)), scale_factor=2, mode="bilinear")
        return received.unflatten(0, (b, t)), scores


class UpTransformerBlock(nn.Module):
    """Stage s = 0, 1, 2: twice the resolution of the stage before, the trunk's features of that scale, attention, MLP."""

    def __init__(self, width: int, channels: int, stage: int, heads: int) -> None:
        super().__init__()
        self.up = ConvUnit(2 * channels, channels) if stage else None
        self.aggregate = nn.ConvTranspose2d(width, channels, 2**stage, stride=2**stage) if stage else None
        self.norm = nn.LayerNorm(channels)
        self.attention = CrossTaskAttention(channels, heads, 2 ** (stage + 1))
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def forward(
        self, x: Tensor, earlier: Float[Tensor, "b t e h0 w0"] | None, passed: Tensor | None
    ) -> tuple[Float[Tensor, "b t c h w"], Tensor]:
        """The features of all tasks, and the attention scores for the next stage."""
        b, t = x.shape[:2]
        if self.up is not None and self.aggregate is not None and earlier is not None:
            x = self.up(F.interpolate(x.flatten(0, 1), scale_factor=2, mode="bilinear"))
            x = (x + self.aggregate(earlier.flatten(0, 1))).unflatten(0, (b, t))
        received, scores = self.attention(self.norm(x.movedim(2, -1)).movedim(-1, 2), passed)
        x = x + received
        return x + self.mlp(x.movedim(2, -1)).movedim(-1, 2), scores


class InvertedPyramid(nn.Module):
    """The decoder: what the tasks took out of the trunk, stacked and refined together."""

    def __init__(self, outputs: Mapping[str, int], width: int, channels: int, heads: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(UpTransformerBlock(width, channels // 2**s, s, heads) for s in range(3))
        self.scales = nn.ModuleList(nn.Conv2d(channels // 2**s, channels, 1) for s in range(3))
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(ConvUnit(channels, channels), nn.Conv2d(channels, out, 1))
                for task, out in outputs.items()
            }
        )

    def forward(self, left: Mapping[str, Left]) -> dict[str, Float[Tensor, "b out h w"]]:
        """The final predictions, on a grid four times as fine as the trunk's; tasks without rows take no part."""
        tasks = [task for task, own in left.items() if len(own.feature)]
        x = torch.stack([left[task].feature for task in tasks], 1)  # b t c h w
        passed, scales = None, []
        for s, (stage, scale) in enumerate(zip(self.stages, self.scales, strict=True)):
            earlier = torch.stack([left[task].earlier[s - 1] for task in tasks], 1) if s else None
            x, passed = stage(x, earlier, passed)
            scales.append(F.interpolate(scale(x.flatten(0, 1)), scale_factor=4 / 2**s, mode="bilinear"))
        own = torch.stack(scales).sum(0).unflatten(0, x.shape[:2]).unbind(1)
        return {task: self.heads[task](features) for task, features in zip(tasks, own, strict=True)}


class InvPT(nn.Module):
    """Trunk, preliminary decoders, inverted pyramid."""

    def __init__(
        self, outputs: Mapping[str, int], *, size: int = 64, patch: int = 8, width: int = 48, depth: int = 6
    ) -> None:
        super().__init__()
        channels, heads = 32, 2
        self.trunk = VisionTransformer(
            img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0
        )
        self.thirds = [depth * third // 3 - 1 for third in (1, 2, 3)]
        self.preliminary = nn.ModuleDict(
            {task: PreliminaryDecoder(width, channels, out) for task, out in outputs.items()}
        )
        self.decoder = InvertedPyramid(outputs, width, channels, heads)

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b e h w"]]:
        """The trunk's features after each third of its blocks."""
        levels: Any = self.trunk.forward_intermediates(images, indices=self.thirds, norm=True, intermediates_only=True)
        return levels

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> dict[str, Prediction]:
        """Predictions of every task that is computed, at the size of the images."""
        levels = self.encode(images)
        left = {task: leave(levels) for task, leave in self.preliminary.items()}

        def enlarged(small: Tensor) -> Tensor:
            return F.interpolate(small, size=images.shape[-2:], mode="bilinear")

        final = self.decoder(left)
        return {task: Prediction(enlarged(out), enlarged(left[task].preliminary)) for task, out in final.items()}


def task_losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Each task's loss, on its final and on its preliminary prediction."""
    predictions: dict[str, Prediction] = model(batch["image"])
    return {
        task: LOSSES[task](both.final, batch[task]) + LOSSES[task](both.preliminary, batch[task])
        for task, both in predictions.items()
    }


def main(steps: int = 10, images: int = 16) -> None:
    """Train, measure, apply, train on."""
    torch.manual_seed(0)
    batches, model = draw(images), InvPT(CHANNELS)
    optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3, insert_lr=1e-2))
    train(model, task_losses, batches, optimizer, steps)

    # The decoder's stages hold attention too, so the blocks that the tasks share are named.
    report = dtme.analyze(model, task_losses, batches, blocks=r"trunk\.blocks\.\d+")
    print(report)
    dtme.expand(model, optimizer, report.plan(fraction=0.5))
    for name, parameter in dtme.added_parameters(model):
        print(f"{name}: {tuple(parameter.shape)}")
    train(model, task_losses, batches, optimizer, steps)


if __name__ == "__main__":
    main()
