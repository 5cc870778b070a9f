"""Task prompts inside the trunk: TaskPrompter on a trunk written by hand, with `dtme` on it.

After Ye and Xu, "TaskPrompter: Spatial-Channel Multi-Task Prompting for Dense Scene Understanding", ICLR 2023.
As there: one learned prompt per task joins the patch tokens and goes through the trunk with them; its attention to the
patches is the task's spatial affinity, its likeness to the channels the task's channel affinity, and both weigh the
patch features out of which the task's own features are decoded, level by level; the attention of prompts to each other
says how much each task takes from the features of the others. Smaller here: three levels of two narrow blocks that start
from random weights, one prompt vector per task, channel prompting once a level and from prompts to channels only, levels
summed, and 64x64 images.

Not to be confused: a prompt belongs to the model, and the stream of every task holds the prompts of all tasks; a task
token is inserted by `dtme` and only the stream of its task sees it. A task leaves the trunk through its `PromptDecoder`,
which reads its own prompt in its own stream. Behind it the tasks meet.

    python examples/taskprompter.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dtme
from dtme._shapes import Float
from scenes import CHANNELS, LOSSES, Batch, draw, train


class Level(NamedTuple):
    """What the trunk hands out after one level: n = t prompts, then one token per patch; g attention heads."""

    tokens: Float[Tensor, "b n p"]
    attention: Float[Tensor, "b g n n"]
    channels: Float[Tensor, "b t p"]


class Decoded(NamedTuple):
    """What one task takes out of the trunk: its features, and how much its prompt attends to each task's."""

    features: Float[Tensor, "b c h w"]
    regard: Float[Tensor, "b t"]


class Attention(nn.Module):
    """Self-attention that also returns its weights: prompts and patches attend to each other and among themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "b n p"]) -> tuple[Float[Tensor, "b n p"], Float[Tensor, "b g n n"]]:
        """What each token receives, and from where."""
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # b g n d
        weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2)), weights


class Block(nn.Module):
    """A pre-norm transformer block that returns its tokens and its attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Float[Tensor, "b n p"]) -> tuple[Float[Tensor, "b n p"], Float[Tensor, "b g n n"]]:
        """Tokens in, tokens and attention out."""
        received, attention = self.attention(self.norm(tokens))
        tokens = tokens + received
        return tokens + self.mlp(tokens), attention


class ChannelPrompting(nn.Module):
    """Prompts attend to the channels of the patches, each channel described by its values at all patches (d = p here).

    A_c = P W_q (F^T W_k)^T / sqrt(d);    P <- P + softmax(A_c) F^T W_v
    """

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.prompt_norm, self.patch_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(patches, 2 * width)

    def forward(
        self, prompts: Float[Tensor, "b t p"], patches: Float[Tensor, "b m p"]
    ) -> tuple[Float[Tensor, "b t p"], Float[Tensor, "b t p"]]:
        """The prompts, and the likeness of each prompt to each channel."""
        key, value = self.key_value(self.patch_norm(patches).mT).chunk(2, -1)  # b p d
        affinity = self.query(self.prompt_norm(prompts)) @ key.mT / math.sqrt(key.shape[-1])
        return prompts + affinity.softmax(-1) @ value, affinity


class PromptedLevel(nn.Module):
    """A few blocks, then channel prompting."""

    def __init__(self, tasks: int, patches: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.prompting = ChannelPrompting(width, patches)

    def forward(self, tokens: Float[Tensor, "b n p"]) -> Level:
        """The tokens for the next level, with the affinities found on the way."""
        attention = tokens
        for block in self.blocks:
            tokens, attention = block(tokens)
        prompts, patches = tokens[:, : self.tasks], tokens[:, self.tasks :]
        prompts, channels = self.prompting(prompts, patches)
        return Level(torch.cat([prompts, patches], 1), attention, channels)


class PromptedTrunk(nn.Module):
    """Task prompts and patches, through all levels."""

    def __init__(
        self, tasks: int, grid: tuple[int, int], patch: int, width: int, heads: int, levels: int, depth: int
    ) -> None:
        super().__init__()
        patches = math.prod(grid)
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, patches, width))
        self.prompts = nn.Parameter(0.02 * torch.randn(1, tasks, width))
        self.levels = nn.ModuleList(PromptedLevel(tasks, patches, width, heads, depth) for _ in range(levels))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> list[Level]:
        """What each level hands out."""
        patches = self.embed(images).flatten(2).mT + self.positions
        tokens = torch.cat([self.prompts.expand(len(images), -1, -1), patches], 1)
        found: list[Level] = []
        for level in self.levels:
            found.append(level(found[-1].tokens if found else tokens))
        return found


class PromptDecoder(nn.Module):
    """Where one task leaves the trunk: its prompt's affinities weigh the patches of its own stream."""

    def __init__(self, task: int, tasks: int, width: int, channels: int, levels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.task, self.tasks, self.grid = task, tasks, grid
        self.mix = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels)) for _ in range(levels))
        self.unit = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, levels: Sequence[Level]) -> Decoded:
        """F + F * A_spatial + F * A_channel at each level, mapped to fewer channels and summed."""
        summed = []
        for mix, (tokens, attention, channels) in zip(self.mix, levels, strict=True):
            patches = tokens[:, self.tasks :]  # b m p
            spatial = attention[:, :, self.task, self.tasks :].mT * patches.shape[1]  # b m g, about one on average
            by_place = (patches.unflatten(2, (spatial.shape[2], -1)) * spatial.unsqueeze(3)).flatten(2)
            by_channel = patches * channels[:, self.task, None].sigmoid()
            summed.append(mix(patches + by_place + by_channel))
        features = torch.stack(summed).sum(0).mT  # b c m
        regard = levels[-1].attention[:, :, self.task, : self.tasks].mean(1)
        return Decoded(self.unit(features.unflatten(2, self.grid)), regard)


class CrossTaskReweighting(nn.Module):
    """Each task adds to its features those of all tasks, in the shares in which its prompt attends to theirs."""

    def __init__(self, tasks: Sequence[str], channels: int) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.offer = nn.ModuleDict({task: nn.Conv2d(channels, channels, 1) for task in tasks})

    def forward(self, decoded: Mapping[str, Decoded]) -> dict[str, Float[Tensor, "b c h w"]]:
        """The features of every task that has rows; the others take no part."""
        present = [task for task, own in decoded.items() if len(own.features)]
        offered = torch.stack([self.offer[task](decoded[task].features) for task in present], 1)  # b t c h w
        columns = [self.tasks.index(task) for task in present]

        def taken(regard: Float[Tensor, "b t"]) -> Float[Tensor, "b c h w"]:
            return torch.einsum("bt,btchw->bchw", F.normalize(regard[:, columns], p=1.0), offered)

        return {task: decoded[task].features + taken(decoded[task].regard) for task in present}


class TaskPrompter(nn.Module):
    """Prompted trunk, prompt decoders, cross-task reweighting, and a linear map from each patch to its pixels."""

    def __init__(
        self, outputs: Mapping[str, int], *, size: int = 64, patch: int = 8, width: int = 48, depth: int = 2
    ) -> None:
        super().__init__()
        tasks, channels, levels, grid = tuple(outputs), 32, 3, (size // patch, size // patch)
        self.trunk = PromptedTrunk(len(tasks), grid, patch, width, 3, levels, depth)
        self.decoders = nn.ModuleDict(
            {task: PromptDecoder(index, len(tasks), width, channels, levels, grid) for index, task in enumerate(tasks)}
        )
        self.reweighting = CrossTaskReweighting(tasks, channels)
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(nn.Conv2d(channels, out * patch**2, 1), nn.PixelShuffle(patch))
                for task, out in outputs.items()
            }
        )

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> dict[str, Float[Tensor, "b out H W"]]:
        """The predictions of every task that is computed."""
        levels = self.trunk(images)
        features = self.reweighting({task: leave(levels) for task, leave in self.decoders.items()})
        return {task: self.heads[task](own) for task, own in features.items()}


def task_losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Each task's loss."""
    return {task: LOSSES[task](out, batch[task]) for task, out in model(batch["image"]).items()}


def main(steps: int = 10, images: int = 16) -> None:
    """Train, measure, apply, train on."""
    torch.manual_seed(0)
    batches, model = draw(images), TaskPrompter(CHANNELS)
    optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3, insert_lr=1e-2))
    train(model, task_losses, batches, optimizer, steps)

    report = dtme.analyze(model, task_losses, batches)
    print(report)
    dtme.expand(model, optimizer, report.plan(fraction=0.5))
    for name, parameter in dtme.added_parameters(model):
        print(f"{name}: {tuple(parameter.shape)}")
    train(model, task_losses, batches, optimizer, steps)


if __name__ == "__main__":
    main()
