"""Inserts in parts of blocks: modulators behind the norms, where attention and MLP take their tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtme
from dtme.streams import Streams
from models import WholeFeatures, displaced

TASKS = ("depth", "edges", "semseg")
PARTS = ("attn", "mlp")


@pytest.fixture
def base() -> WholeFeatures:
    return WholeFeatures(TASKS)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()


def changed(base: nn.Module, plan: dtme.Plan) -> Any:
    """A copy with the plan, its inserts away from where they begin."""
    return displaced(copy.deepcopy(base), plan, 0.3)


def behind_norms(*blocks: int) -> dict[str, tuple[str, ...]]:
    return {f"trunk.blocks.{block}.{part}": TASKS for block in blocks for part in PARTS}


@pytest.mark.parametrize("blocks", [(1, 2), (0, 3), (3,)])
def test_modulators_behind_norms_are_norms_of_each_tasks_own(
    base: WholeFeatures, images: Tensor, blocks: tuple[int, ...]
):
    """W * (w * n + c) + b is a norm of weight W * w and bias W * c + b."""
    model = changed(base, dtme.Plan(TASKS, modulate=behind_norms(*blocks)))
    outputs = model(images)
    for place, task in enumerate(TASKS):
        own = copy.deepcopy(base)
        for block in blocks:
            for part, norm in zip(PARTS, ("norm1", "norm2"), strict=True):
                insert: Any = model.get_submodule(f"trunk.blocks.{block}.{part}.dtme")
                layer: Any = own.get_submodule(f"trunk.blocks.{block}.{norm}")
                with torch.no_grad():
                    layer.bias.mul_(insert.scale[place]).add_(insert.shift[place])
                    layer.weight.mul_(insert.scale[place])
        torch.testing.assert_close(outputs[task], own(images)[task])
        assert not isinstance(outputs[task], Streams)


MIXED = dtme.Plan(
    TASKS,
    modulate={**behind_norms(1, 3), "trunk.blocks.1": TASKS, "trunk.blocks.2": ("depth",)},
    expand={"trunk.blocks.1.attn": ("semseg",), "trunk.blocks.3": TASKS},
    adapt={"trunk.blocks.3.mlp": ("depth", "edges")},
)


def test_all_tasks_at_once_are_one_after_the_other(base: WholeFeatures, images: Tensor):
    model = changed(base, MIXED)
    outputs = model(images)
    for task in TASKS:
        with dtme.tasks(model, task):
            torch.testing.assert_close(model(images)[task], outputs[task])
        with dtme.tasks(model, per_sample=[task, task]):
            torch.testing.assert_close(model(images)[task], outputs[task])
    torch.testing.assert_close(copy.deepcopy(model)(images), outputs)


def test_gradients_reach_every_insert(base: WholeFeatures, images: Tensor):
    model = changed(base, MIXED)
    torch.stack([output.square().mean() for output in model(images).values()]).sum().backward()
    for name, parameter in dtme.added_parameters(model):
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_at_the_start_and_once_removed_outputs_are_the_models_own(base: WholeFeatures, images: Tensor):
    model = copy.deepcopy(base)
    dtme.apply(model, dtme.Plan(TASKS, modulate=behind_norms(1, 2)))
    for task, output in model(images).items():
        torch.testing.assert_close(output, base(images)[task])
    dtme.remove(model)
    assert model.state_dict().keys() == base.state_dict().keys()
    assert all(torch.equal(output, base(images)[task]) for task, output in model(images).items())


def test_compiled(base: WholeFeatures, images: Tensor):
    model = changed(base, dtme.Plan(TASKS, modulate=behind_norms(3)))
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), model(images))


def test_a_block_that_runs_in_two_parts_takes_none_inside(base: WholeFeatures):
    plan = dtme.Plan(TASKS, modulate={"trunk.blocks.1.attn": TASKS}, expand={"trunk.blocks.1": ("depth",)})
    with pytest.raises(ValueError, match=r"block 'trunk.blocks.1' has task tokens for \('depth',\) alone"):
        dtme.apply(base, plan)


def test_a_part_that_is_not_given_every_stream_is_refused():
    class Shared(nn.Module):
        """Its second layer takes one row, whatever the samples."""

        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attn, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, tokens: Tensor) -> Tensor:
            return tokens + self.attn(self.norm1(tokens)) + self.mlp(tokens.new_ones(1, 1, 8))

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Shared(), Shared()])
            self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})

        def forward(self, tokens: Tensor) -> dict[str, Tensor]:
            for block in self.blocks:
                tokens = block(tokens)
            return {task: head(tokens) for task, head in self.heads.items()}

    model = dtme.apply(Other(), dtme.Plan(TASKS, modulate={"blocks.1.mlp": TASKS}))
    with pytest.raises(ValueError, match=r"1 rows enter 'blocks\.1\.mlp' where the block 'blocks\.1' around it runs 3"):
        model(torch.randn(2, 5, 8))
