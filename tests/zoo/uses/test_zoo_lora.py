"""LoRA of peft on a trunk beside a plan, put there before or after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from torch import nn

import dtme
from zoo import ZOO, Entry, assert_same, everything, filled, gradients_of, loss_of

EXACT = {"rtol": 0.0, "atol": 0.0}


def linear_layers(entry: Entry) -> list[str]:
    """The layers of the blocks that run as layers on tokens, and so do something with what peft puts beside them."""
    model, ran = entry.make(), []
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name.startswith(tuple(f"{block}." for block in entry.blocks)):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(**entry.inputs())
    return [name for name in dict.fromkeys(ran) if "pos" not in name and "cpb" not in name]


WITH_LINEAR_LAYERS = [name for name, entry in ZOO.items() if linear_layers(entry)]


def with_lora(model: nn.Module, layers: list[str]) -> Any:
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=layers, init_lora_weights=False)
    lora = peft.get_peft_model(model, config).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return lora


def added(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name.removeprefix("base_model.model."): parameter for name, parameter in dtme.added_parameters(model)}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("name", WITH_LINEAR_LAYERS)
def test_lora_before_and_after_a_plan_is_the_same_function(name: str):
    entry = ZOO[name]
    plan = replace(everything(entry), copies={})  # a copy of a block copies the LoRA that is in it
    layers, inputs = linear_layers(entry), entry.inputs()
    before = with_lora(entry.make(), layers)
    alone = before(**inputs)
    filled(before.base_model.model, plan)
    after = with_lora(filled(entry.make(), plan), layers)
    together = before(**inputs)
    assert_same(after(**inputs), together)
    assert not torch.allclose(together[entry.tasks[0]], alone[entry.tasks[0]])
    assert added(before).keys() == added(after).keys() == dict(dtme.added_parameters(filled(entry.make(), plan))).keys()
    with dtme.tasks(after, per_sample=entry.tasks):
        mixed = after(**inputs)
    for row, task in enumerate(entry.tasks):
        torch.testing.assert_close(mixed[task][row], together[task][row])

    for parameter in added(after).values():  # peft froze what it did not add
        parameter.requires_grad_(True)
    for model in (before, after):
        loss_of(model(**inputs)).backward()
        learning = gradients_of(model).keys()
        assert {name for name in learning if "lora_" not in name} == {name for name, _ in dtme.added_parameters(model)}
        assert {name for name, _ in model.named_parameters() if "lora_" in name} <= learning
        dtme.remove(model)
        assert_same(model(**inputs), alone)
        assert not any("dtme" in key for key in model.state_dict())


def test_heads_that_peft_copies_to_train_them_whole_are_routed():
    entry = ZOO["ViT"]
    plan, inputs = everything(entry), entry.inputs()
    heads = [f"heads.{task}" for task in entry.tasks]
    config = peft.LoraConfig(r=2, target_modules=["qkv"], modules_to_save=heads)
    expected = filled(entry.make(), plan)(**inputs)
    after: Any = peft.get_peft_model(filled(entry.make(), plan), config).double().eval()
    before: Any = peft.get_peft_model(entry.make(), config).double().eval()
    filled(before.base_model.model, plan)
    first, *others = entry.tasks
    for model in (before, after):
        assert_same(model(**inputs), expected)
        with dtme.tasks(model, first):
            alone = model(**inputs)
        torch.testing.assert_close(alone[first], expected[first])
        assert [len(alone[other]) for other in others] == [0, 0]
    merged = after.merge_and_unload()
    assert_same(merged(**inputs), expected)
    with dtme.tasks(merged, per_sample=entry.tasks):
        mixed = merged(**inputs)
    for row, task in enumerate(entry.tasks):
        torch.testing.assert_close(mixed[task][row], expected[task][row])


def test_a_wrapper_that_a_plan_was_applied_to_cannot_be_left_behind():
    entry = ZOO["ViT"]
    model: Any = peft.get_peft_model(entry.make(), peft.LoraConfig(r=2, target_modules=["qkv"])).double()
    block = f"base_model.model.{entry.blocks[-1]}"
    dtme.apply(model, dtme.Plan(entry.tasks, {block: entry.tasks}))
    inner = model.merge_and_unload()
    for ask in (lambda: dtme.tasks(inner, "depth").__enter__(), lambda: dtme.added_parameters(inner)):
        with pytest.raises(ValueError, match="applied to a model around it, which is not given"):
            ask()
    dtme.remove(model)
    assert not any("dtme" in key for key in inner.state_dict())
