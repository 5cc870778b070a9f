"""Modulators are the identity where their parameters are zero: what decays goes there, whatever rule says that it decays."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import timm.optim
import torch
import transformers
from models import timm_multitask
from safetensors.torch import load, save
from torch import Tensor, nn

import dtme

TASKS = ("depth", "semseg", "scene")
BLOCK = "trunk.blocks.{}".format
PLAN = dtme.Plan(TASKS, {BLOCK(1): TASKS, BLOCK(3): ("semseg", "scene")})
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Groups = Iterable[dict[str, Any]]


def trainer_rule(model: nn.Module) -> Groups:
    """The groups that transformers' Trainer makes."""
    decaying = set(transformers.Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    named = dict(model.named_parameters())
    yield {"params": [p for name, p in named.items() if name in decaying], "weight_decay": 0.1}
    yield {"params": [p for name, p in named.items() if name not in decaying], "weight_decay": 0.0}


RULES: dict[str, Callable[[nn.Module], Groups]] = {
    "timm": lambda model: timm.optim.param_groups_weight_decay(model, 0.1),
    "timm by layers": lambda model: timm.optim.param_groups_layer_decay(model, 0.1),
    "Trainer": trainer_rule,
    "ndim <= 1": lambda model: [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ],
    "all": lambda model: [{"params": list(model.parameters()), "weight_decay": 0.1}],
}


@pytest.mark.parametrize("rule", RULES)
def test_whoever_builds_the_optimizer_after_apply_keeps_the_identity(rule: str):
    model = dtme.apply(timm_multitask(TASKS), PLAN)
    added = dict(dtme.added_parameters(model))
    optimizer = torch.optim.AdamW(RULES[rule](model), lr=1e-3)
    for _ in range(2000):  # without any gradient
        for parameter in added.values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    base = timm_multitask(TASKS)
    assert all(torch.equal(output, base(IMAGES)[task]) for task, output in model(IMAGES).items())
    with torch.no_grad():
        added[f"{BLOCK(1)}.dtme.scale"].fill_(0.5)  # and what has been learnt goes back to it
    before = distance(model, base)
    for _ in range(200):
        optimizer.step()
    assert distance(model, base) < before


def distance(one: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        return sum(float((output - other(IMAGES)[task]).abs().mean()) for task, output in one(IMAGES).items())


def old_and_new() -> tuple[nn.Module, dict[str, Tensor]]:
    """A model, and its state dict as 0.1.0 would have written it."""
    model = dtme.apply(timm_multitask(TASKS), PLAN)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    old = model.state_dict()
    for name in old:
        if name.endswith(".dtme.scale"):
            old[name] = old[name] + 1
            old._metadata[name.removesuffix(".scale")]["version"] = 1
    return model, old


@pytest.mark.parametrize("through", ["memory", "torch.save"])
def test_a_state_dict_of_an_earlier_version_means_what_it_meant(through: str):
    model, old = old_and_new()
    if through == "torch.save":
        file = io.BytesIO()
        torch.save(old, file)
        file.seek(0)
        old = torch.load(file, weights_only=True)
    again = dtme.apply(timm_multitask(TASKS, seed=5), PLAN)
    again.load_state_dict(old)
    for task, output in again(IMAGES).items():
        torch.testing.assert_close(output, model(IMAGES)[task])


def test_one_of_today_comes_back_to_the_bit_whether_it_says_its_version_or_not():
    model, _ = old_and_new()
    for state in (model.state_dict(), dict(model.state_dict()), load(save(model.state_dict()))):
        again = dtme.apply(timm_multitask(TASKS, seed=5), PLAN)
        again.load_state_dict(state)
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_an_earlier_one_that_has_lost_its_version_is_told():
    model, old = old_and_new()
    with pytest.warns(UserWarning, match=r"'trunk\.blocks\.\d\.dtme\.scale' lies around 1.*subtract 1 from every"):
        model.load_state_dict(load(save(dict(old))))
