"""The price of a plan: what it is told of, what it leaves alone, and what an analysis counts on its way."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import FlopCounterMode

import dtme
from dtme.cost import price
from dtme.flops import FlopCount, ModelFlops
from dtme.products import plain_products
from models import WholeFeatures, make_batches, task_losses, tiny_vit, torch_encoder_multitask


def counted(model: nn.Module, image: Tensor) -> int:
    with torch.no_grad(), plain_products(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops()


def test_streams_are_told_block_by_block():
    model = tiny_vit()
    plan = dtme.Plan(model.tasks, {"blocks.1": ("scene",)}, {"blocks.3": ("depth",)})
    cost = plan.cost(model, torch.randn(2, 3, 16, 16))
    assert cost.streams == {"blocks.0": 1, "blocks.1": 2, "blocks.2": 2, "blocks.3": 3}
    assert cost.ratio == cost.flops / cost.plain_flops > 1
    nothing = dtme.Plan(model.tasks).cost(model, torch.randn(2, 3, 16, 16))
    assert nothing.flops == nothing.plain_flops == cost.plain_flops


def test_a_sample_is_a_tensor_a_tuple_or_a_dictionary():
    image = torch.randn(2, 3, 16, 16)
    plan = dtme.Plan(("depth", "semseg", "scene"), {"blocks.2": ("scene",)})
    costs = [plan.cost(tiny_vit(), sample) for sample in (image, (image,), {"image": image})]
    assert costs[0] == costs[1] == costs[2]
    with torch.inference_mode():
        assert plan.cost(tiny_vit(), image) == costs[0]


def test_the_model_stays_as_it_was():
    model = torch_encoder_multitask(True, dropout=0.1).train()
    model.encoder.layers[1].eval()
    plan = dtme.Plan(model.tasks, *[{"encoder.layers.1": ("irony",)}] * 3)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    random_state = torch.get_rng_state()
    plan.cost(model, model.draw(3, torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(model.state_dict()) == list(before)
    assert "forward" not in vars(model.encoder.layers[1].self_attn)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_plan_that_does_not_fit_is_refused():
    model, image = tiny_vit(), torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"no block 'blocks\.9'"):
        dtme.Plan(model.tasks, {"blocks.9": ("scene",)}).cost(model, image)
    with pytest.raises(
        ValueError, match=r"block 'blocks\.1' cannot be counted: 'blocks\.1\.mlp\.0' lies in 'blocks\.1\.mlp'"
    ):
        dtme.Plan(model.tasks, {"blocks.1.mlp": ("scene",)}, adapt={"blocks.1.mlp.0": ("scene",)}).cost(model, image)
    model.blocks[1].spare = nn.Linear(16, 16)
    with pytest.raises(ValueError, match=r"block 'blocks\.1' cannot be counted: 'blocks\.1\.spare' runs 0 times in it"):
        dtme.Plan(model.tasks, {"blocks.1.spare": ("scene",)}).cost(model, image)
    with pytest.raises(ValueError, match=r"block 'heads\.scene\.project' did not run by itself"):
        dtme.Plan(model.tasks, {"heads.scene.project": ("scene",)}).cost(model, image)
    dtme.apply(model, dtme.Plan(model.tasks, {"blocks.1": ("scene",)}))
    with pytest.raises(ValueError, match="has inserts already"):
        dtme.Plan(model.tasks).cost(model, image)


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
    assert price(plan, report.flops) == plan.cost(model, batches[0]["inputs"])


def test_counting_changes_no_rate(monkeypatch: pytest.MonkeyPatch):
    model = torch_encoder_multitask(True)
    batches = make_batches(model, (3, 5))
    report = dtme.analyze(model, task_losses, batches)
    monkeypatch.setattr(FlopCount, "first_pass", lambda self, aside: torch.no_grad())
    without = dtme.analyze(model, task_losses, batches)
    assert isinstance(without.flops, str)
    assert torch.equal(report.range_rate, without.range_rate)
    assert torch.equal(report.null_rate, without.null_rate)


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
    assert price(plan, report.flops) == plan.cost(model, x, branches=branches)


def other_than_three_samples(tokens: Tensor) -> bool:
    return len(tokens) != 3


def under_a_mode(tokens: Tensor) -> bool:
    """As compiled kernels do, flex attention for one."""
    return _get_current_dispatch_mode() is not None


@pytest.mark.parametrize("refuses", [other_than_three_samples, under_a_mode])
def test_a_block_that_cannot_run_beside_the_pass_does_not_end_the_analysis(refuses: Callable[[Tensor], bool]):
    model = tiny_vit(depth=2)
    batches = make_batches(model, (3,))
    before = dtme.analyze(model, task_losses, batches)
    block = model.blocks[1]

    class Stubborn(type(block)):
        def forward(self, tokens: Tensor) -> Tensor:
            if refuses(tokens):
                raise IndexError("not like that")
            return super().forward(tokens)

    block.__class__ = Stubborn
    report = dtme.analyze(model, task_losses, batches)
    assert torch.equal(report.range_rate, before.range_rate)
    assert report.flops == "the FLOPs of block 'blocks.1' cannot be counted: not like that"
    with pytest.raises(ValueError, match=r"max_cost: the report holds no FLOPs .* not like that"):
        report.plan(max_cost=1.5)


def test_the_analysis_of_a_model_with_inserts_says_that_it_counts_none():
    model = tiny_vit(depth=2)
    batches = make_batches(model, (3,))
    dtme.apply(model, dtme.Plan(model.tasks, {"blocks.1": ("scene",)}))
    report = dtme.analyze(model, task_losses, batches)
    assert isinstance(report.flops, str)
    assert "has inserts" in report.flops


ALL = ("depth", "edges", "semseg")
AT = "trunk.blocks."


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
def test_inserts_in_parts_of_blocks_are_priced_to_the_flop(placed: dict[str, Any]):
    model = WholeFeatures(ALL).eval()
    image = torch.randn(5, 3, 32, 32).double()
    plan = dtme.Plan(ALL, **placed)
    told = plan.cost(model, image)
    assert told.plain_flops == counted(model, image)
    assert told.flops == counted(dtme.apply(model, plan), image)


def test_streams_that_part_at_the_mlp_cost_less_than_those_that_part_at_the_block():
    model, image = WholeFeatures(ALL), torch.randn(2, 3, 32, 32).double()
    whole = dtme.Plan(ALL, adapt={AT + "3": ALL}, adapt_layers=r"mlp\..*")
    late = dtme.Plan(ALL, adapt={AT + "3": ALL}).starting_at("mlp")
    costs = [plan.cost(model, image) for plan in (whole, late)]
    assert costs[0].streams == costs[1].streams == {f"{AT}{place}": 1 + 2 * (place == 3) for place in range(4)}
    assert 1 < costs[1].ratio < costs[0].ratio


def test_flops_of_parts_come_back_from_json():
    model = WholeFeatures(ALL)
    count = FlopCount(model, [AT + "3.mlp"])
    with torch.no_grad(), plain_products(), count.first_pass():
        model(torch.randn(2, 3, 32, 32).double())
    flops = count.flops()
    assert flops.blocks[AT + "3"].parts[AT + "3.mlp"].last
    assert ModelFlops.from_dict(json.loads(json.dumps(flops.to_dict()))) == flops
