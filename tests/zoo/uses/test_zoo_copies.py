"""Copies of a model with a plan: by deepcopy, by pickle, by state dict, by a running average of the weights."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dtme
from zoo import ZOO, assert_same, everything, filled, gradients_of, inert, loss_of

EXACT = {"rtol": 0.0, "atol": 0.0}


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))  # noqa: S301


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
@pytest.mark.parametrize("name", ZOO)
def test_a_copy_is_a_model_of_its_own(name: str, duplicate: Callable[[Any], Any]):
    entry = ZOO[name]
    model, inputs = filled(entry.make(), everything(entry)), entry.inputs()
    before = model(**inputs)
    twin = duplicate(model)
    assert_same(twin(**inputs), before, **EXACT)
    with dtme.tasks(twin, per_sample=[0, 1, 2]):  # the routing of the one is not that of the other
        assert not torch.equal(twin(**inputs)[entry.tasks[0]], before[entry.tasks[0]])
        assert_same(model(**inputs), before, **EXACT)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    dtme.remove(twin)
    assert not any("dtme" in key for key in twin.state_dict())
    assert_same(model(**inputs), before, **EXACT)
    dtme.remove(model)
    assert_same(model(**inputs), entry.make()(**inputs), **EXACT)


@pytest.mark.parametrize("name", ZOO)
def test_state_dicts_go_both_ways(name: str):
    entry = ZOO[name]
    base, plan, inputs = entry.make(), everything(entry), entry.inputs()
    model = filled(entry.make(), plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    again = dtme.apply(entry.make(), plan)
    again.load_state_dict(state)
    assert_same(again(**inputs), model(**inputs), **EXACT)

    own = {key: value for key, value in state.items() if ".dtme." not in key}
    base.load_state_dict(own)  # strict: the base's keys are what they were
    dtme.remove(model)
    assert_same(base(**inputs), model(**inputs), **EXACT)
    lacking = dtme.apply(entry.make(), plan).load_state_dict(own, strict=False)
    assert lacking.unexpected_keys == []
    assert {key.partition(".dtme.")[0] for key in lacking.missing_keys} == set(plan.blocks)


@pytest.mark.parametrize("name", ZOO)
def test_a_running_average_of_the_weights_routes_by_itself(name: str):
    entry = ZOO[name]
    model, inputs = filled(entry.make(), everything(entry)), entry.inputs()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    average.update_parameters(model)
    first = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    loss_of(model(**inputs)).backward()
    optimiser.step()
    average.update_parameters(model)
    expected = dtme.apply(entry.make(), everything(entry))
    with torch.no_grad():
        for key, parameter in expected.named_parameters():
            parameter.copy_(0.75 * first[key] + 0.25 * dict(model.named_parameters())[key])
    average.eval(), expected.eval()
    assert_same(average(**inputs), expected(**inputs))
    assert dict(dtme.added_parameters(average)).keys() == {f"module.{key}" for key, _ in dtme.added_parameters(model)}
    moved = {key: value for key, value in dtme.added_parameters(model) if key not in inert(gradients_of(model))}
    assert not any(torch.equal(dict(average.module.named_parameters())[key], value) for key, value in moved.items())
    together = model(**inputs)
    with dtme.tasks(average, per_sample=[0, 1, 2]):
        rows = average(**inputs)
        assert_same(model(**inputs), together, **EXACT)
    with dtme.tasks(model, per_sample=[0, 1, 2]):
        assert_same(average(**inputs), expected(**inputs))
    for row, task in enumerate(entry.tasks):
        torch.testing.assert_close(rows[task][row], expected(**inputs)[task][row])


@pytest.mark.parametrize("name", ["ViT", "Swin", "bert", "torch encoder, batch first"])
def test_the_running_average_of_timm_is_a_model_of_its_own(name: str, tmp_path: Path):
    entry = ZOO[name]
    model, inputs = filled(entry.make(), everything(entry)), entry.inputs()
    average = ModelEmaV3(model, decay=0.75)
    average.update(model)
    first = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    loss_of(model(**inputs)).backward()
    optimiser.step()
    average.update(model)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(dict(average.module.named_parameters())[key], 0.75 * first[key] + 0.25 * parameter)
    with dtme.tasks(average, per_sample=[0, 1, 2]):
        rows, together = average(**inputs), model(**inputs)
    whole = average(**inputs)
    assert all(len(output) == 3 for output in together.values())
    for row, task in enumerate(entry.tasks):
        torch.testing.assert_close(rows[task][row], whole[task][row])
        assert not torch.equal(whole[task], together[task])
    dtme.save_pretrained(average, tmp_path, base=True)
    assert_same(dtme.load_pretrained(entry.make(), tmp_path)(**inputs), whole, **EXACT)


def test_a_copy_of_a_head_is_asked_for_by_the_same_model():
    entry = ZOO["ViT"]
    model, inputs = filled(entry.make(), everything(entry)), entry.inputs()
    before, first = model(**inputs), entry.tasks[0]
    model.heads[first] = copy.deepcopy(model.heads[first])
    assert_same(model(**inputs), before, **EXACT)
    with dtme.tasks(model, *entry.tasks[1:]):
        assert len(model(**inputs)[first]) == 0
