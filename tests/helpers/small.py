"""A small transformer that takes any block, and what a plan does to each task in it, done to a copy by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from models import displaced
from torch import Tensor, nn

import dtme
from dtme.trunk.linear_layers import linear_layers

WIDTH = 8
TASKS = ("a", "b")


class Attention(nn.Module):
    """Self-attention, samples first."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        samples, length, width = x.shape
        q, k, v = self.qkv(x).reshape(samples, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, attn: nn.Module | None = None, mlp: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH), Attention() if attn is None else attn
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), Mlp() if mlp is None else mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Small(nn.Module):
    """Five features to tokens, three blocks, a norm, and a linear map of all tokens per task; in double precision.

    Args:
        make_block: Called for each block.
        tasks: Names of the tasks.
    """

    def __init__(self, make_block: Callable[[], nn.Module] = Block, tasks: Sequence[str] = TASKS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(5, WIDTH)
        self.blocks = nn.ModuleList([make_block() for _ in range(3)])
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleDict({task: nn.Linear(WIDTH, 2) for task in tasks})
        self.double()

    def trunk(self, x: Tensor) -> Tensor:
        """The tokens that the heads take."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {task: head(x) for task, head in self.heads.items()}


def features(samples: int = 4, length: int = 6) -> Tensor:
    """Inputs of a `Small`."""
    return torch.randn(samples, length, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def losses(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """A loss per task, for `analyze`."""
    return {task: (out - place).square().mean() for place, (task, out) in enumerate(model(x).items())}


def planned(base: Any, *, scale: float = 0.3, **plan: Any) -> Any:
    """A copy of the base with a plan for its tasks, every insert moved from where it begins."""
    return displaced(copy.deepcopy(base), dtme.Plan(tuple(base.heads), **plan), scale)


def by_hand(base: nn.Module, model: Any, task: str) -> nn.Module:
    """The base with what a task has in the model: tokens scaled and shifted, updates added to weights, copies in their places."""
    alone = copy.deepcopy(base)
    for name, insert in model.named_modules():
        if not getattr(insert, "is_inserted", False):
            continue
        holder, _, own = name.removesuffix(".dtme").rpartition(".")
        block: Any = copy.deepcopy(
            alone.get_submodule(name.removesuffix(".dtme"))
        )  # of its own, also where it is shared
        if task in insert.copied:
            block.load_state_dict(insert.copies[insert.copied.index(task)].state_dict())
        if task in insert.adapted:
            row = insert.adapted.index(task)
            for key, update in insert.low_rank.items():
                weight = linear_layers(block)[key.replace("-", ".")].weight
                weight.data += (update.up[row] @ update.down[row]).detach()
        if task in insert.modulated:
            row = insert.modulated.index(task)
            scale, shift = insert.scale[row].detach(), insert.shift[row].detach()
            block.register_forward_pre_hook(lambda _, args, w=scale, b=shift: (args[0] * w + b, *args[1:]))
        setattr(alone.get_submodule(holder), own, block)
    return alone


def assert_each_task_is_alone(base: Any, model: Any, x: Tensor, *, rows: bool = True) -> None:
    """All tasks at once, one at a time and, with `rows`, row by row, twice, give what the base does with the task's inserts."""
    tasks = tuple(base.heads)
    expected = {task: by_hand(base, model, task)(x)[task] for task in tasks}
    for _ in range(2):
        together = model(x)
        for task in tasks:
            torch.testing.assert_close(together[task], expected[task], rtol=1e-7, atol=1e-9)
            with dtme.tasks(model, task):
                torch.testing.assert_close(model(x)[task], expected[task], rtol=1e-7, atol=1e-9)
            if rows:
                with dtme.tasks(model, per_sample=[task] * len(x)):
                    torch.testing.assert_close(model(x)[task], expected[task], rtol=1e-7, atol=1e-9)
    assert not all(torch.allclose(expected[task], base(x)[task]) for task in tasks)


def assert_gradients_are_those_by_hand(base: Any, model: Any, x: Tensor) -> None:
    """What the model's own parameters receive from all tasks at once is the sum of what they receive from each."""
    model.zero_grad()
    torch.stack([out.square().sum() for out in model(x).values()]).sum().backward()
    expected: dict[str, Tensor] = {}
    for task in base.heads:
        alone = by_hand(base, model, task)
        alone(x)[task].square().sum().backward()
        for name, parameter in alone.named_parameters():
            if parameter.grad is not None:
                expected[name] = expected.get(name, torch.zeros(())) + parameter.grad
    for name, parameter in model.named_parameters():
        if ".dtme." not in name:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-6, atol=1e-9)
