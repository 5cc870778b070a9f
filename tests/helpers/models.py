"""Tiny deterministic multi-task transformers of the three kinds people write: by hand, on timm, on torch.nn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dtme
from dtme._shapes import Bool, Float, Int

Batch: TypeAlias = dict[str, Any]

WIDTH = 16
DENSE = {"depth": 1, "normals": 3, "semseg": 4}
"""Dense tasks and their channels; `scene` is the fourth task and reads the class token alone."""
CLASSES = {"semseg", "scene", "topic"}
"""Tasks whose targets are class indices; the others regress."""


class Attention(nn.Module):
    """Multi-head self-attention with the softmax written out."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "b n p"]) -> Float[Tensor, "b n p"]:
        b, n, p = tokens.shape
        q, k, v = self.qkv(tokens).reshape(b, n, 3, self.heads, p // self.heads).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-1, -2) * (p // self.heads) ** -0.5
        if self.causal:
            later = torch.ones(n, n, dtype=torch.bool, device=tokens.device).triu(1)
            logits = logits.masked_fill(later, -torch.inf)
        return self.out((logits.softmax(-1) @ v).transpose(1, 2).reshape(b, n, p))


class Block(nn.Module):
    """A pre-norm transformer block, called as `block(tokens)`."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Float[Tensor, "b n p"]) -> Float[Tensor, "b n p"]:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class DenseHead(nn.Module):
    """Patch tokens to a map; the batch size comes from the image, as in many published decoders."""

    def __init__(self, width: int, channels: int, side: int):
        super().__init__()
        self.side = side
        self.project = nn.Linear(width, channels)

    def forward(self, tokens: Float[Tensor, "b n p"], batch_size: int) -> Float[Tensor, "b c h w"]:
        patches = self.project(tokens[:, 1:])
        return patches.reshape(batch_size, self.side, self.side, patches.shape[-1]).permute(0, 3, 1, 2)


class ClassHead(nn.Module):
    """The class token to class scores: no other token of the last block's output gets a gradient from here."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.project = nn.Linear(width, classes)

    def forward(self, tokens: Float[Tensor, "b n p"], batch_size: int) -> Float[Tensor, "b c"]:
        return self.project(tokens[:, 0]).reshape(batch_size, self.project.out_features)


class TinyViT(nn.Module):
    """A vision transformer written by hand.

    With `causal=True` the class token sees nothing but itself: the gradients of a task that reads it alone are exactly
    zero at every other token of every block.
    """

    def __init__(self, tasks: Sequence[str], *, depth: int = 4, causal: bool = False, width: int = WIDTH):
        super().__init__()
        self.tasks = tuple(tasks)
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.positions = nn.Parameter(torch.randn(1, 5, width) * 0.5)
        self.blocks = nn.ModuleList(Block(width, 2, causal) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict(
            {task: DenseHead(width, DENSE[task], 2) if task in DENSE else ClassHead(width, 3) for task in tasks}
        )

    def draw(self, b: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Inputs of `b` samples."""
        return (torch.randn(b, 3, 16, 16, generator=generator, dtype=self.positions.dtype),)

    def embed(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n p"]:
        """The tokens before the first block."""
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(image), -1, -1), tokens], dim=1) + self.positions

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        b = image.shape[0]
        tokens = self.embed(image)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens).reshape(b, self.positions.shape[1], -1)
        return {task: head(tokens, b) for task, head in self.heads.items()}


class WholeFeatures(nn.Module):
    """A small vision transformer of timm in double precision, and a linear map of all of its tokens per task."""

    def __init__(self, tasks: Sequence[str]):
        super().__init__()
        torch.manual_seed(0)
        self.trunk: Any = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=0
        )
        self.heads = nn.ModuleDict({task: nn.Linear(16, 1) for task in tasks})
        self.double()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        features = self.trunk.forward_features(images)
        return {task: head(features) for task, head in self.heads.items()}


def displaced(model: Any, plan: dtme.Plan, scale: float) -> Any:
    """The model with the plan, every added parameter moved from where it begins."""
    dtme.apply(model, plan)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


class PatchMap(nn.Module):
    """Patch tokens to a map; the batch size comes from the tokens."""

    def __init__(self, width: int, channels: int, side: int):
        super().__init__()
        self.side = side
        self.project = nn.Linear(width, channels)

    def forward(self, tokens: Float[Tensor, "b n p"]) -> Float[Tensor, "b c h w"]:
        return self.project(tokens[:, 1:]).transpose(1, 2).unflatten(2, (self.side, self.side))


class FirstToken(nn.Module):
    """The first token to class scores."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.project = nn.Linear(width, classes)

    def forward(self, tokens: Float[Tensor, "b n p"]) -> Float[Tensor, "b c"]:
        return self.project(tokens[:, 0])


class TimmMultitask(nn.Module):
    """A timm vision transformer and one head per task."""

    def __init__(self, tasks: Sequence[str], *, depth: int = 4):
        super().__init__()
        self.tasks = tuple(tasks)
        self.trunk: Any = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=32,
            patch_size=8,
            embed_dim=WIDTH,
            depth=depth,
            num_heads=2,
            num_classes=0,
        )
        self.heads = nn.ModuleDict(
            {task: PatchMap(WIDTH, DENSE[task], 4) if task in DENSE else FirstToken(WIDTH, 3) for task in tasks}
        )

    def draw(self, b: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Inputs of `b` samples."""
        return (torch.randn(b, 3, 32, 32, generator=generator, dtype=next(self.parameters()).dtype),)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        tokens = self.trunk.forward_features(image)
        return {task: head(tokens) for task, head in self.heads.items()}


class PooledHead(nn.Module):
    """The mean of the tokens that are not padding, to scores or a value."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.project = nn.Linear(width, outputs)

    def forward(self, tokens: Float[Tensor, "b n p"], padding: Bool[Tensor, "b n"]) -> Float[Tensor, "b c"]:
        keep = (~padding).to(tokens.dtype)
        return self.project((tokens * keep[:, :, None]).sum(1) / keep.sum(1, keepdim=True))


class EncoderMultitask(nn.Module):
    """Words through `nn.TransformerEncoder` with a padding mask and, if asked, a causal one; pooled heads."""

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        depth: int = 4,
        batch_first: bool,
        norm_first: bool = True,
        dropout: float = 0.0,
        causal: bool = False,
    ):
        super().__init__()
        self.tasks = tuple(tasks)
        self.batch_first = batch_first
        self.later = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
        self.words = nn.Embedding(20, WIDTH)
        self.positions = nn.Parameter(torch.randn(7, WIDTH) * 0.5)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 2 * WIDTH, dropout=dropout, activation="gelu", batch_first=batch_first, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        for parameter in self.encoder.parameters():  # the layers are copies of one: make them differ
            nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleDict({task: PooledHead(WIDTH, 3 if task in CLASSES else 1) for task in tasks})

    def draw(self, b: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Inputs of `b` samples: words and where the padding is; every sentence keeps at least two words."""
        length = torch.randint(2, 8, (b, 1), generator=generator)
        return torch.randint(20, (b, 7), generator=generator), torch.arange(7) >= length

    def embed(self, words: Int[Tensor, "b n"]) -> Float[Tensor, "b n p"]:
        """The tokens before the first layer, batch first."""
        return self.words(words) + self.positions

    def forward(self, words: Int[Tensor, "b n"], padding: Bool[Tensor, "b n"]) -> dict[str, Tensor]:
        tokens = self.embed(words)
        if not self.batch_first:
            tokens = tokens.transpose(0, 1)
        tokens = self.encoder(tokens, mask=self.later, src_key_padding_mask=padding)
        if not self.batch_first:
            tokens = tokens.transpose(0, 1)
        tokens = self.norm(tokens)
        return {task: head(tokens, padding) for task, head in self.heads.items()}


def tiny_vit(tasks: Sequence[str] = ("depth", "semseg", "scene"), *, seed: int = 0, **options: Any) -> TinyViT:
    """A `TinyViT` whose weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyViT(tasks, **options)


def timm_multitask(
    tasks: Sequence[str] = ("depth", "semseg", "scene"), *, seed: int = 0, **options: Any
) -> TimmMultitask:
    """A `TimmMultitask` whose weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TimmMultitask(tasks, **options)


def torch_encoder_multitask(
    batch_first: bool, tasks: Sequence[str] = ("rating", "topic", "irony"), *, seed: int = 0, **options: Any
) -> EncoderMultitask:
    """An `EncoderMultitask` whose weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EncoderMultitask(tasks, batch_first=batch_first, **options)


def make_batches(
    model: TinyViT | TimmMultitask | EncoderMultitask,
    sizes: Sequence[int],
    *,
    present: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
) -> list[Batch]:
    """One batch per size: `inputs`, a tuple for the model, and `targets`, a tensor per labelled task.

    Args:
        model: Says what its inputs look like.
        sizes: Samples per batch.
        present: The tasks labelled in each batch; all of them by default.
        seed: Same seed, same batches.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for index, b in enumerate(sizes):
        inputs = model.draw(b, generator)
        with torch.no_grad():
            shapes = {task: output.shape for task, output in model(*inputs).items()}
        targets = {task: _target(task, shape, generator) for task, shape in shapes.items()}
        named = model.tasks if present is None else present[index]
        batches.append({"inputs": inputs, "targets": {task: targets[task] for task in named}})
    return batches


def _target(task: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if task in CLASSES:
        return torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def task_losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The loss of every task that the batch has targets for.

    Where the batch has `rows` (task to a mask over the samples), a task's loss is taken over its own rows.
    """
    outputs = model(*batch["inputs"])
    losses = {}
    for task, target in batch["targets"].items():
        output = outputs[task]
        if "rows" in batch:
            output, target = output[batch["rows"][task]], target[batch["rows"][task]]
        losses[task] = loss(output, target)
    return losses


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy for class indices, squared error for values."""
    return (
        F.mse_loss(output, target.to(output.dtype)) if target.is_floating_point() else F.cross_entropy(output, target)
    )
