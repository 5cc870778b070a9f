"""The exact cost of a plan: what it is told of, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import WholeFeatures, make_batches, task_losses, tiny_vit, torch_encoder_multitask
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dtme
from dtme.attach.cost import plain_products

ALL = ("depth", "edges", "semseg")
AT = "trunk.blocks."


def counted(model: nn.Module, image: Tensor) -> int:
    with torch.no_grad(), plain_products(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops()


def test_streams_are_told_block_by_block():
    model = tiny_vit()
    plan = dtme.Plan(model.tasks, {"blocks.1": ("scene",)}, {"blocks.3": ("depth",)})
    cost = dtme.cost(model, plan, torch.randn(2, 3, 16, 16))
    assert cost.streams == {"blocks.0": 1, "blocks.1": 2, "blocks.2": 2, "blocks.3": 3}
    assert list(cost.streams) == [f"blocks.{place}" for place in range(4)]
    assert cost.ratio == cost.flops / cost.plain_flops > 1
    nothing = dtme.cost(model, dtme.Plan(model.tasks), torch.randn(2, 3, 16, 16))
    assert nothing.flops == nothing.plain_flops == cost.plain_flops
    assert set(nothing.streams.values()) == {1}


def test_a_modulator_repeats_the_blocks_behind_it_and_nothing_else():
    """By hand: two blocks more, each its linear layers and the two products of its attention."""
    model, tokens, width = tiny_vit(), 2 * 5, 16
    plan = dtme.Plan(model.tasks, {"blocks.2": ("scene",)})
    cost = dtme.cost(model, plan, torch.randn(2, 3, 16, 16))
    linear = [m for m in model.blocks[2].modules() if isinstance(m, nn.Linear)]
    block = 2 * tokens * (sum(m.weight.numel() for m in linear) + 2 * 5 * width)
    assert cost.flops - cost.plain_flops == 2 * block


def test_a_batch_is_a_tensor_a_tuple_or_a_dictionary():
    image = torch.randn(2, 3, 16, 16)
    plan = dtme.Plan(("depth", "semseg", "scene"), {"blocks.2": ("scene",)})
    costs = [dtme.cost(tiny_vit(), plan, batch) for batch in (image, (image,), [image], {"image": image})]
    assert costs[0] == costs[1] == costs[2] == costs[3]
    with torch.inference_mode():
        assert dtme.cost(tiny_vit(), plan, image) == costs[0]


def test_losses_run_the_model_and_are_no_part_of_it():
    model = tiny_vit()
    (batch,) = make_batches(model, (3,))
    plan = dtme.Plan(model.tasks, {"blocks.2": ("scene",)}, {"blocks.3": model.tasks})
    given = []

    def with_a_product(twin: nn.Module, batch: Any) -> dict[str, Tensor]:
        given.append(twin)
        losses = task_losses(twin, batch)
        distance = nn.Linear(9, 9)(torch.ones(9, 9)).sum() + (torch.ones(9, 9) @ torch.ones(9, 9)).sum()
        return {task: loss + 0 * distance for task, loss in losses.items()}

    cost = dtme.cost(model, plan, batch, task_losses=with_a_product)
    assert cost == dtme.cost(model, plan, batch["inputs"])
    assert all(twin is not model for twin in given)


def test_losses_that_run_another_model_than_the_one_they_are_given_are_told_of():
    model = tiny_vit()
    (batch,) = make_batches(model, (3,))
    with pytest.raises(
        ValueError, match=r"no product ran in the model\. Let task_losses run the model that it is given"
    ):
        dtme.cost(model, dtme.Plan(model.tasks), batch, task_losses=lambda twin, batch: task_losses(model, batch))


def test_a_model_that_is_no_more_than_its_parts_is_counted_part_by_part():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    parts = nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleDict({"a": nn.Linear(8, 1), "b": nn.Linear(8, 3)})})

    def losses(model: Any, tokens: Tensor) -> dict[str, Tensor]:
        tokens = model["trunk"](tokens)
        return {task: head(tokens).square().mean() for task, head in model["heads"].items()}

    cost = dtme.cost(parts, dtme.Plan(("a", "b")), torch.randn(2, 6, 8), task_losses=losses)
    block = 2 * 12 * (4 * 8 * 8 + 2 * 8 * 16 + 2 * 6 * 8)
    assert cost.plain_flops == 2 * block + 2 * 12 * 8 * (1 + 3)


def test_the_model_stays_as_it_was():
    model = torch_encoder_multitask(True, dropout=0.1).train()
    model.encoder.layers[1].eval()
    plan = dtme.Plan(model.tasks, *[{"encoder.layers.1": ("irony",)}] * 3)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    random_state = torch.get_rng_state()
    dtme.cost(model, plan, model.draw(3, torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(model.state_dict()) == list(before)
    assert "forward" not in vars(model.encoder.layers[1].self_attn)
    assert torch.backends.mha.get_fastpath_enabled()
    dtme.apply(model, plan)  # nothing of the twin is left


def test_a_plan_that_does_not_fit_is_refused():
    model, image = tiny_vit(), torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"no block 'blocks\.9'"):
        dtme.cost(model, dtme.Plan(model.tasks, {"blocks.9": ("scene",)}), image)
    with pytest.raises(ValueError, match=r"'blocks\.1\.mlp' is a Sequential, which would run an insert as a member"):
        dtme.cost(model, dtme.Plan(model.tasks, {"blocks.1.mlp": ("scene",)}), image)
    dtme.apply(model, dtme.Plan(model.tasks, {"blocks.1": ("scene",)}))
    with pytest.raises(ValueError, match="has inserts already"):
        dtme.cost(model, dtme.Plan(model.tasks), image)


def test_branches_are_named_or_given_as_modules_of_the_model():
    class Parted(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            tokens = self.trunk(x)
            return {"left": self.left(tokens), "right": self.right(tokens)}

    model, x = Parted(), torch.randn(2, 6, 8)
    plan = dtme.Plan(("left", "right"), {"trunk.layers.1": ("left",)})
    given = dtme.cost(model, plan, x, branches={"left": model.left, "right": "right"})
    assert given == dtme.cost(model, plan, x, branches={"left": "left", "right": "right"})
    assert not model.left._forward_pre_hooks
    with pytest.raises(ValueError, match=r"branches\['left'\]: this Linear is no module of the model"):
        dtme.cost(model, plan, x, branches={"left": nn.Linear(8, 3), "right": "right"})


@pytest.mark.parametrize(
    "placed",
    [
        {"adapt": {AT + "3.mlp": ALL}},
        {"copies": {AT + "3.mlp": ALL[1:]}},
        {"copies": {AT + "2.mlp": ALL[1:], AT + "3": ALL[1:]}},
        {"adapt": {AT + "2.mlp": ("edges",)}, "modulate": {AT + "3.attn": ALL}},
        {"expand": {AT + "1": ALL, AT + "1.attn": ALL}, "adapt": {AT + "1.mlp": ALL}},
        {"expand": {AT + "1": ALL[:2]}, "adapt": {AT + "1.mlp": ALL}, "joint_tokens": True},
    ],
)
def test_it_is_what_the_counter_says_of_the_model_with_the_plan_applied(placed: dict[str, Any]):
    model = WholeFeatures(ALL).eval()
    image = torch.randn(5, 3, 32, 32).double()
    plan = dtme.Plan(ALL, **placed)
    told = dtme.cost(model, plan, image)
    assert told.plain_flops == counted(model, image)
    assert told.flops == counted(dtme.apply(model, plan), image)


def test_streams_that_part_at_the_mlp_cost_less_than_those_that_part_at_the_block():
    model, image = WholeFeatures(ALL), torch.randn(2, 3, 32, 32).double()
    whole = dtme.Plan(ALL, adapt={AT + "3": ALL}, adapt_layers=r"mlp\..*")
    late = dtme.Plan(ALL, adapt={AT + "3.mlp": ALL})
    costs = [dtme.cost(model, plan, image) for plan in (whole, late)]
    assert costs[0].streams == costs[1].streams == {f"{AT}{place}": 1 + 2 * (place == 3) for place in range(4)}
    assert 1 < costs[1].ratio < costs[0].ratio
