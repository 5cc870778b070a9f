"""Models with inserts that nobody holds any more are freed, whatever they did before."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import TinyViT, tiny_vit

import dtme

TASKS = ("depth", "semseg")
PLAN = dtme.Plan(
    TASKS, {"blocks.1": TASKS}, {"blocks.2": TASKS}, {"blocks.3": ("depth",)}, copies={"blocks.0": ("semseg",)}
)
IMAGES = torch.randn(2, 3, 16, 16)


def forward(model: TinyViT) -> Any:
    return model(IMAGES)


def keeps_its_output(model: TinyViT) -> Any:
    model.last = model(IMAGES)


def backward(model: TinyViT) -> Any:
    sum(output.square().mean() for output in model(IMAGES).values()).backward()


def removed(model: TinyViT) -> Any:
    forward(model)
    dtme.remove(model)


def inference(model: TinyViT) -> Any:
    with torch.inference_mode():
        model.eval()(IMAGES)


def nothing(model: TinyViT) -> Any:
    return None


@pytest.mark.parametrize("act", [nothing, forward, keeps_its_output, backward, removed, inference])
def test_a_model_that_is_dropped_is_freed(act: Callable[[TinyViT], Any]):
    models, parameters = [], []
    for _ in range(5):
        model = dtme.apply(tiny_vit(TASKS), PLAN).train()
        act(model)
        models.append(weakref.ref(model))
        parameters += [weakref.ref(parameter) for parameter in model.parameters()]
        del model
    gc.collect()
    assert not any(alive() is not None for alive in models)
    assert not any(alive() is not None for alive in parameters)


def test_200_models_take_no_more_than_one():
    for number in range(200):
        dtme.apply(tiny_vit(TASKS), PLAN).train()(IMAGES)
        if number == 9:
            gc.collect()
            before = sum(type(one) is torch.nn.Parameter for one in gc.get_objects())
    gc.collect()
    assert sum(type(one) is torch.nn.Parameter for one in gc.get_objects()) <= before
