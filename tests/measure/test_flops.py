"""FLOPs of a plain pass: what an analysis counts on its way, how blocks and parts are told apart, and what cannot be counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import (
    Block,
    WholeFeatures,
    make_batches,
    task_losses,
    timm_multitask,
    tiny_vit,
    torch_encoder_multitask,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import FlopCounterMode

import dtme
from dtme.attach.cost import plain_products
from dtme.measure import analyze as analysis
from dtme.measure.flops import count_flops
from dtme.plan.cost import ModelFlops, price

ALL = ("depth", "edges", "semseg")
AT = "trunk.blocks."


def counted(model: nn.Module, image: Tensor) -> int:
    with torch.no_grad(), plain_products(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops()


def test_an_analysis_counts_the_model_and_not_the_losses():
    model = tiny_vit()
    batches = make_batches(model, (3, 5))

    def with_a_product(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        losses = task_losses(model, batch)
        return {task: loss + 0 * (torch.ones(9, 9) @ torch.ones(9, 9)).sum() for task, loss in losses.items()}

    report = dtme.analyze(model, with_a_product, batches)
    assert isinstance(report.flops, ModelFlops)
    assert report.flops.plain == counted(model, batches[0]["inputs"][0])
    plan = report.plan()
    cost = dtme.cost(model, plan, batches[0], task_losses=with_a_product)
    assert price(plan, report.flops) == cost


def test_counting_changes_no_rate(monkeypatch: pytest.MonkeyPatch):
    model = torch_encoder_multitask(True)
    batches = make_batches(model, (3, 5))
    report = dtme.analyze(model, task_losses, batches)
    monkeypatch.setattr(analysis, "count_first_batch", lambda *_: "not now.")
    without = dtme.analyze(model, task_losses, batches)
    assert without.flops == "not now."
    assert torch.equal(report.range_rate, without.range_rate)
    assert torch.equal(report.null_rate, without.null_rate)


def test_counting_draws_no_random_numbers():
    model = timm_multitask(depth=2)
    (batch,) = make_batches(model, (3,))
    state = torch.get_rng_state()
    count_flops(model, lambda: (torch.rand(3), model(*batch["inputs"])), ["trunk.blocks.1"])
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_without_a_dictionary_of_heads_what_follows_the_trunk_is_the_tasks_own():
    class Parted(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            tokens = self.trunk(x)
            return {"left": self.left(tokens), "right": self.right(tokens)}

    model = Parted()
    x = torch.randn(2, 6, 8)
    losses = lambda model, batch: {task: out.square().mean() for task, out in model(batch).items()}  # noqa: E731
    report = dtme.analyze(model, losses, [x])
    plan = dtme.Plan(("left", "right"), {"trunk.layers.1": ("left",)})
    branches = {"left": model.left, "right": "right"}
    assert isinstance(report.flops, ModelFlops)
    assert report.flops.once == 2 * 2 * 6 * 8 * (3 + 5)
    assert price(plan, report.flops) == dtme.cost(model, plan, x, branches=branches)


def test_what_lies_between_blocks_is_told_from_what_runs_once():
    """By hand: an embedding in front, a layer on the tokens between two blocks, one beside them, a head for each task."""

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.beside, self.between = nn.Linear(4, 16), nn.Linear(4, 7), nn.Linear(16, 16)
            self.blocks = nn.ModuleList(Block(16, 2, False) for _ in range(2))
            self.heads = nn.ModuleDict({"a": nn.Linear(16, 1), "b": nn.Linear(16, 2)})

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            tokens = self.between(self.blocks[0](self.embed(x)))
            beside = self.beside(x).mean()
            tokens = self.blocks[1](tokens) + beside
            return {task: head(tokens) for task, head in self.heads.items()}

    model, x = Between(), torch.randn(3, 5, 4)
    flops = count_flops(model, lambda: model(x), ["blocks.0", "blocks.1"])
    rows = 2 * 3 * 5
    assert flops.once == rows * (4 * 16 + 4 * 7 + 16 * 3)
    assert [block.behind for block in flops.blocks.values()] == [rows * 16 * 16, 0]
    assert {block.stream for block in flops.blocks.values()} == {rows * (4 * 16 * 16 + 4 * 16 * 16 + 2 * 5 * 16)}


def other_than_three_samples(tokens: Tensor) -> bool:
    return len(tokens) != 3


def under_a_mode(tokens: Tensor) -> bool:
    """As compiled kernels do, flex attention for one."""
    return _get_current_dispatch_mode() is not None


def stubborn(model: Any, refuses: Callable[[Tensor], bool]) -> None:
    block = model.blocks[1]

    class Stubborn(type(block)):
        def forward(self, tokens: Tensor) -> Tensor:
            if refuses(tokens):
                raise IndexError("not like that")
            return super().forward(tokens)

    block.__class__ = Stubborn


def test_a_block_that_cannot_be_counted_does_not_end_the_analysis():
    model = tiny_vit(depth=2)
    batches = make_batches(model, (3,))
    before = dtme.analyze(model, task_losses, batches)
    stubborn(model, under_a_mode)
    report = dtme.analyze(model, task_losses, batches)
    assert torch.equal(report.range_rate, before.range_rate)
    assert report.flops == "the FLOPs of the model cannot be counted: not like that"
    with pytest.raises(ValueError, match=r"max_cost: the report holds no FLOPs .* not like that"):
        report.plan(max_cost=1.5)


def test_a_block_that_takes_no_streams_is_counted_and_refuses_inserts():
    model = tiny_vit(depth=2)
    batches = make_batches(model, (3,))
    before = dtme.analyze(model, task_losses, batches)
    stubborn(model, other_than_three_samples)
    report = dtme.analyze(model, task_losses, batches)
    assert torch.equal(report.range_rate, before.range_rate)
    assert isinstance(report.flops, ModelFlops)
    assert isinstance(before.flops, ModelFlops)
    assert report.flops.plain == before.flops.plain
    assert report.flops.blocks["blocks.1"].refusals == {"expand": "not like that", "adapt": "not like that"}
    assert not report.flops.blocks["blocks.0"].refusals
    with pytest.raises(ValueError, match=r"block 'blocks\.1' cannot take what is to be inserted. not like that"):
        report.plan(max_cost=1.5)


def test_the_analysis_of_a_model_with_inserts_says_that_it_counts_none():
    model = tiny_vit(depth=2)
    batches = make_batches(model, (3,))
    dtme.apply(model, dtme.Plan(model.tasks, {"blocks.1": ("scene",)}))
    report = dtme.analyze(model, task_losses, batches)
    assert isinstance(report.flops, str)
    assert "has inserts" in report.flops


def test_no_block_that_ran_is_told_of():
    model = tiny_vit(depth=2)
    with pytest.raises(ValueError, match=r"none of the blocks blocks\.0, blocks\.1 ran"):
        count_flops(model, lambda: None, ["blocks.0"])


@pytest.mark.parametrize(
    "placed",
    [
        {"adapt": {AT + "3.mlp": ALL}},
        {"copies": {AT + "3.mlp": ALL[1:]}},
        {"copies": {AT + "2.mlp": ALL[1:], AT + "3": ALL[1:]}},
        {"adapt": {AT + "2.mlp": ("edges",)}, "modulate": {AT + "3.attn": ALL}},
        {"modulate": {AT + "2.attn": ("depth",)}, "adapt": {AT + "3.mlp": ALL}},
        {"modulate": {AT + "1.attn": ALL, AT + "1.mlp": ALL}, "adapt": {AT + "3.mlp": ("depth",)}},
        {"modulate": {AT + "1": ALL}, "adapt": {AT + "3.mlp": ALL}, "expand": {AT + "3": ALL}},
        {"expand": {AT + "2.attn": ("edges",)}, "tokens_per_task": 2},
        {"expand": {AT + "1.attn": ALL}, "adapt": {AT + "1.attn": ALL}, "tokens_per_task": 3},
        {"expand": {AT + "1": ALL, AT + "1.attn": ALL}, "adapt": {AT + "1.mlp": ALL}},
        {"expand": {AT + "1": ALL[:2]}, "adapt": {AT + "1.mlp": ALL}, "joint_tokens": True},
    ],
)
def test_inserts_in_parts_of_blocks_are_priced(placed: dict[str, Any]):
    model = WholeFeatures(ALL).eval()
    image = torch.randn(5, 3, 32, 32).double()
    plan = dtme.Plan(ALL, **placed)
    told = price(plan, count_flops(model, lambda: model(image), plan.blocks))
    cost = dtme.cost(model, plan, image)
    assert told == cost


def test_flops_of_parts_come_back_from_json():
    model = WholeFeatures(ALL)
    image = torch.randn(2, 3, 32, 32).double()
    flops = count_flops(model, lambda: model(image), [AT + "3.mlp"])
    assert flops.blocks[AT + "3"].parts[AT + "3.mlp"].last
    assert ModelFlops.from_dict(json.loads(json.dumps(flops.to_dict()))) == flops


class Recurrent(nn.Module):
    """One block, three times."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.ModuleList([Block(16, 2, False)])
        self.heads = nn.ModuleDict({task: nn.Linear(16, 2) for task in ALL})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        for _ in range(3):
            tokens = self.shared[0](tokens)
        return {task: head(tokens) for task, head in self.heads.items()}


class Siamese(Recurrent):
    """A block on each of two sequences, of other lengths."""

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        both = self.shared[0](tokens[:, :3]).mean(1) + self.shared[0](tokens[:, 3:]).mean(1)
        return {task: head(both) for task, head in self.heads.items()}


@pytest.mark.parametrize("kind", [Recurrent, Siamese])
@pytest.mark.parametrize("placed", [{"modulate": ("shared.0",)}, {"expand": ("shared.0",)}, {"adapt": ("shared.0",)}])
def test_a_block_that_runs_several_times_is_priced_for_all_its_runs(kind: type[Recurrent], placed: dict[str, Any]):
    model, tokens = kind(), torch.randn(2, 8, 16)
    flops = count_flops(model, lambda: model(tokens), ["shared.0"])
    (name,) = placed
    plan = dtme.Plan(ALL, rank=3, tokens_per_task=2, **{name: {"shared.0": ALL}})
    cost = dtme.cost(model, plan, tokens)
    assert price(plan, flops) == cost


@pytest.mark.parametrize("sharing", [(0, 1), (1, 2)])
def test_blocks_that_share_their_last_part_have_none_that_streams_part_in(sharing: tuple[int, int]):
    model: Any = timm_multitask(depth=4)
    blocks = model.trunk.blocks
    blocks[sharing[1]].mlp = blocks[sharing[0]].mlp
    (batch,) = make_batches(model, (3,))
    names = [f"{AT}{place}" for place in range(4)]
    found = count_flops(model, lambda: model(*batch["inputs"]), names)
    late = [found.blocks[name].late for name in names]
    assert late == [None if place in sharing else f"{AT}{place}.mlp" for place in range(4)]


class Refusing(nn.Module):
    """A block that takes no task tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 5)
        self.map = nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.map(self.mix(tokens.mT).mT)


def test_a_refusal_names_its_own_block():
    model: Any = tiny_vit(depth=3)
    model.blocks = nn.ModuleList(Refusing() for _ in range(3))
    (batch,) = make_batches(model, (3,))
    names = [f"blocks.{place}" for place in range(3)]
    for name, own in count_flops(model, lambda: model(*batch["inputs"]), names).blocks.items():
        assert own.task_tokens is None
        assert own.updates is None  # one of its layers takes channels for positions
        assert all(f"'{name}" in why for why in own.refusals.values()) or "shapes" in own.refusals["expand"]
