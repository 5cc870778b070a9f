"""What a model says of the plan that was applied to it, and what it does where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import timm_multitask
from torch import nn

import dtme

TASKS = ("depth", "semseg", "scene")
BLOCK = "trunk.blocks.{}".format
PLAN = dtme.Plan(TASKS, {BLOCK(2): TASKS})


def test_a_plain_model_has_no_plan_and_nothing_to_remove():
    model = timm_multitask(TASKS)
    hooks = len(model._forward_hooks)
    assert dtme.plan_of(model) is None
    assert list(dtme.added_parameters(model)) == []
    assert dtme.remove(model) is model
    assert dtme.remove(model, torch.optim.SGD(model.parameters(), 0.1)) is model
    assert len(model._forward_hooks) == hooks


@pytest.mark.parametrize(
    "wrap", [lambda model: model, nn.Sequential, torch.compile], ids=["itself", "inside", "compiled"]
)
def test_the_plan_is_found_through_wrappers(wrap: Any):
    model = dtme.apply(timm_multitask(TASKS), PLAN)
    assert dtme.plan_of(wrap(model)) == PLAN
    assert [name.rpartition(".")[2] for name, _ in dtme.added_parameters(wrap(model))] == ["scale", "shift"]
    dtme.remove(wrap(model))
    assert dtme.plan_of(wrap(model)) is None


def test_a_part_of_a_model_with_a_plan_is_told_from_one_without():
    model = dtme.apply(timm_multitask(TASKS), PLAN)
    assert dtme.plan_of(model.heads) is None
    for ask in (dtme.plan_of, dtme.added_parameters, dtme.remove):
        with pytest.raises(ValueError, match="a plan that was applied to a model around it"):
            ask(model.trunk)


def test_an_empty_plan_is_applied_and_removed():
    model, empty = timm_multitask(TASKS), dtme.Plan(TASKS)
    dtme.apply(model, empty)
    assert dtme.plan_of(model) == empty
    with pytest.raises(ValueError, match="has inserts already"):
        dtme.apply(model, PLAN)
    dtme.remove(model)
    assert dtme.plan_of(model) is None
    dtme.apply(model, PLAN)


def test_another_plan_is_told_how_to_take_the_place_of_the_first():
    model = dtme.apply(timm_multitask(TASKS), PLAN)
    with pytest.raises(
        ValueError, match=r"dtme\.remove\(model\) to begin anew.*dtme\.expand\(model, optimizer, plan\)"
    ):
        dtme.apply(model, dtme.Plan(TASKS, {BLOCK(3): TASKS}))
