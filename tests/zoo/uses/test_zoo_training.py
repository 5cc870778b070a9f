"""A training step after `apply`: activations recomputed, gradients accumulated, a frozen trunk, groups of parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dtme
from zoo import ZOO, assert_same, everything, filled, gradients_of, inert, loss_of


def recompute(trunk: nn.Module) -> bool:
    """Turn activation checkpointing on by the library's own switch, where it has one."""
    if hasattr(trunk, "set_grad_checkpointing"):
        trunk.set_grad_checkpointing()
        return True
    names = (
        "activation_checkpointing_enable",
        "gradient_checkpointing_enable",
    )  # what transformers calls it now, and did
    enable = next((getattr(trunk, name) for name in names if hasattr(trunk, name)), None)
    if enable is not None:
        enable({"use_reentrant": False})
    return enable is not None


def runs_of_first_leaf(block: nn.Module) -> list[nn.Module]:
    """Grows by one each time that the first layer with weights in a block runs."""
    leaf = next(m for m in block.modules() if not [*m.children()] and [*m.parameters()])
    ran: list[nn.Module] = []
    leaf.register_forward_hook(lambda module, *_: ran.append(module))
    return ran


SWITCHED = [name for name, entry in ZOO.items() if recompute(getattr(entry.make(), "trunk", nn.Module()))]


@pytest.mark.parametrize("name", SWITCHED)
def test_recomputed_activations_give_the_same_gradients(name: str):
    entry = ZOO[name]
    model = filled(entry.make(), everything(entry)).train()
    twin = copy.deepcopy(model)
    assert recompute(twin.trunk)
    runs = []
    for each in (model, twin):
        torch.manual_seed(0)  # of paths that are dropped in training
        ran = runs_of_first_leaf(each.get_submodule(entry.blocks[-1]))
        loss_of(each(**entry.inputs())).backward()
        runs.append(len(ran))
    assert runs[1] == 2 * runs[0]
    assert {key for key, _ in dtme.added_parameters(model)} <= gradients_of(model).keys()
    assert_same(gradients_of(model), gradients_of(twin))


def per_sample(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([output.flatten(1).square().mean(1) for output in model(**inputs).values()]).sum(0)


@pytest.mark.parametrize("name", ZOO)
def test_two_halves_of_a_batch_accumulate_the_gradients_of_the_whole(name: str):
    entry = ZOO[name]
    model, inputs = filled(entry.make(), everything(entry)), entry.inputs(4)
    per_sample(model, inputs).mean().backward()
    whole = gradients_of(model)
    model.zero_grad()
    for half in (slice(0, 2), slice(2, 4)):
        (per_sample(model, {key: value[half] for key, value in inputs.items()}).mean() / 2).backward()
    assert_same(gradients_of(model), whole)


@pytest.mark.parametrize("frozen_first", [True, False])
@pytest.mark.parametrize("name", ZOO)
def test_with_a_frozen_model_the_added_parameters_alone_learn(name: str, frozen_first: bool):
    entry = ZOO[name]
    model = entry.make().requires_grad_(not frozen_first)
    filled(model, everything(entry))
    if not frozen_first:
        model.requires_grad_(False)
        for _, parameter in dtme.added_parameters(model):
            parameter.requires_grad_(True)
    added = dict(dtme.added_parameters(model))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimiser = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)
    loss = loss_of(model(**entry.inputs()))
    loss.backward()
    optimiser.step()
    assert gradients_of(model).keys() == added.keys()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert added.keys() - inert(gradients_of(model)) <= moved <= added.keys()
    assert loss_of(model(**entry.inputs())).item() < loss.item()


@pytest.mark.parametrize("name", ZOO)
def test_groups_of_parameters_hold_each_once(name: str):
    entry = ZOO[name]
    model = filled(entry.make(), everything(entry)).requires_grad_(True)
    added = dict(dtme.added_parameters(model))
    rest = {key: parameter for key, parameter in model.named_parameters() if key not in added}
    assert rest.keys() == dict(entry.make().named_parameters()).keys()
    groups = [{"params": [*rest.values()], "lr": 0.0}, {"params": [*added.values()], "lr": 0.1}]
    optimiser = torch.optim.SGD(groups)  # refuses a parameter that is in two groups
    held = [id(parameter) for group in optimiser.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    loss_of(model(**entry.inputs())).backward()
    optimiser.step()
    moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    assert added.keys() - inert(gradients_of(model)) <= moved <= added.keys()


def test_parts_of_a_pass_that_a_recomputation_cannot_tell_apart_are_refused():
    entry = ZOO["bert"]
    block, others = entry.blocks[1], entry.tasks[1:]
    for plan in (
        dtme.Plan(entry.tasks, expand={block: others}, adapt={entry.blocks[2]: entry.tasks}),
        dtme.Plan(entry.tasks, expand={block: others}, adapt={block: entry.tasks}),
    ):
        model = filled(entry.make(), plan).train()
        loss_of(model(**entry.inputs())).backward()
        expected = gradients_of(model)
        model.zero_grad()
        assert recompute(model.trunk)
        loss = loss_of(model(**entry.inputs()))
        if block in plan.adapt:
            with pytest.raises(
                ValueError, match=rf"adapt: .*checkpointing.*'{block}' without its hooks.*lanes of the block ran apart"
            ):
                loss.backward()
        else:
            loss.backward()
            assert_same(gradients_of(model), expected)
    model = filled(
        ZOO["ViT"].make(),
        dtme.Plan(
            ZOO["ViT"].tasks,
            expand={ZOO["ViT"].blocks[1]: ("depth",)},
            adapt={ZOO["ViT"].blocks[1]: ("semseg", "depth")},
        ),
    )
    twin = copy.deepcopy(model)
    assert recompute(twin.trunk)  # recomputes the block with its hooks
    for each in (model, twin):
        loss_of(each(**ZOO["ViT"].inputs())).backward()
    assert_same(gradients_of(model), gradients_of(twin))
