"""What an analysis and a training step with streams hold at one time, against a plain training step; and checkpointing."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import dtme
from benchmarks.clock import Live, peak_bytes
from dtme.trunk.blocks import find_blocks

TASKS = ("depth", "edges", "normals", "semseg")


class Vit(nn.Module):
    """Eight blocks of 64 channels on 65 tokens: activations, not parameters, are what takes memory."""

    def __init__(self, tasks: tuple[str, ...] = TASKS) -> None:
        super().__init__()
        trunk: Any = timm.create_model(
            "vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=64, depth=8, num_heads=4, num_classes=0
        )
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: nn.Linear(64, 2) for task in tasks})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.trunk.forward_features(images)
        return {task: head(tokens) for task, head in self.heads.items()}


def losses(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    return {task: (place + 1 - out).square().mean() for place, (task, out) in enumerate(model(images).items())}


def step(model: nn.Module, images: Tensor) -> None:
    torch.stack(list(losses(model, images).values())).sum().backward()
    model.zero_grad(set_to_none=True)


@pytest.fixture
def model() -> Vit:
    torch.manual_seed(0)
    return Vit()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_live_bytes_of_a_few_operations():
    x = torch.ones(1000)
    with Live() as live:
        y = 2 * x
        z = y.view(10, 100) + 1
        del y
        w = 3 * z
        del w, z
        kept = x + 1
    assert (live.most, live.now) == (8000, 4000)
    del kept
    assert live.now == 0


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize(("tasks", "samples", "share"), [(4, 1, 1.0), (6, 5, 1.0), (11, 5, 1.4)])
def test_an_analysis_peaks_no_higher_than_a_training_step(
    images: Tensor, batches: int, tasks: int, samples: int, share: float
):
    """Up to six tasks; each task's token gradients are one part in twenty more."""
    torch.manual_seed(0)
    model, own = Vit(tuple(f"task-{place}" for place in range(tasks))), images[:samples]
    plain = peak_bytes(partial(step, model, own))
    assert peak_bytes(lambda: dtme.analyze(model, losses, [own] * batches)) <= share * plain


def activations(model: nn.Module, images: Tensor) -> int:
    """The peak of a training step without the gradients of the parameters."""
    return peak_bytes(partial(step, model, images)) - sum(4 * parameter.numel() for parameter in model.parameters())


ROOM = {"modulate": 1.10, "expand": 1.05, "both": 1.10, "adapt": 1.25}
"""A modulator keeps the tokens that it is given, task tokens are tokens more, an update keeps its inner product.

Where a mode watches, as it does here, updates are not written in place, and take more than they do otherwise."""


@pytest.mark.parametrize(
    ("first", "kind"), [(0, "modulate"), (4, "modulate"), (4, "expand"), (0, "both"), (6, "adapt")]
)
def test_streams_take_about_their_number_of_activations(model: Vit, images: Tensor, first: int, kind: Any):
    blocks = list(find_blocks(model))
    plain = activations(model, images)
    here = dict.fromkeys(blocks[first:], TASKS)
    dtme.apply(model, dtme.Plan(TASKS, **dict.fromkeys(("modulate", "expand") if kind == "both" else (kind,), here)))
    share = (len(blocks) - first) / len(blocks)
    tail = 0.04 if first else 0.0  # of the norm behind the blocks, which runs on every stream, too
    assert activations(model, images) <= plain * (1 - share + share * len(TASKS) * ROOM[kind] + tail)


class Bert(nn.Module):
    """Norms behind: what reads the tokens first are the maps to queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.BertConfig(
            hidden_size=64, num_hidden_layers=6, num_attention_heads=4, intermediate_size=256, vocab_size=8
        )
        self.trunk = transformers.BertModel(config, add_pooling_layer=False).eval()
        self.heads = nn.ModuleDict({task: nn.Linear(64, 2) for task in TASKS})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        states = self.trunk(inputs_embeds=tokens).last_hidden_state
        return {task: head(states) for task, head in self.heads.items()}


class Llama(nn.Module):
    """Norms made of several operations, two of which keep the tokens."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.LlamaConfig(
            hidden_size=64, num_hidden_layers=6, num_attention_heads=4, intermediate_size=128, vocab_size=8
        )
        self.trunk = transformers.LlamaModel(config)
        self.heads = nn.ModuleDict({task: nn.Linear(64, 2) for task in TASKS})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        states = self.trunk(inputs_embeds=tokens, use_cache=False).last_hidden_state
        return {task: head(states) for task, head in self.heads.items()}


class Torchs(nn.Module):
    """Norms behind, and attention that makes queries, keys and values by one map."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 256, 0.0), 6, enable_nested_tensor=False)
        self.heads = nn.ModuleDict({task: nn.Linear(64, 2) for task in TASKS})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        states = self.trunk(tokens)
        return {task: head(states) for task, head in self.heads.items()}


@pytest.mark.parametrize("kind", [Bert, Llama, Torchs])
def test_modulators_keep_a_tenth_more_per_stream_at_most_whatever_reads_their_tokens(kind: type[nn.Module]):
    torch.manual_seed(0)
    model, tokens = kind(), torch.randn(8, 65, 64)
    plain = activations(model, tokens)
    dtme.apply(model, dtme.Plan(TASKS, dict.fromkeys(find_blocks(model), TASKS)))
    assert activations(model, tokens) <= 1.10 * len(TASKS) * plain


def test_checkpointing_lets_streams_go_and_changes_no_gradient(model: Vit, images: Tensor):
    blocks = list(find_blocks(model))
    dtme.apply(model, dtme.Plan(TASKS, dict.fromkeys(blocks[2:], TASKS), dict.fromkeys(blocks[4:], TASKS)))
    found = []
    for checkpointing in (False, True):
        model.trunk.set_grad_checkpointing(checkpointing)
        torch.stack(list(losses(model, images).values())).sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
        model.zero_grad(set_to_none=True)
    for kept, repeated in zip(*found, strict=True):
        torch.testing.assert_close(kept, repeated)
    model.trunk.set_grad_checkpointing(False)
    whole = peak_bytes(partial(step, model, images))
    model.trunk.set_grad_checkpointing(True)
    assert peak_bytes(partial(step, model, images)) < 0.7 * whole
