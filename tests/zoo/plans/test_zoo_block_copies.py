"""Copies of blocks on the whole zoo: every task is the model with its own copies in the place of those blocks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtme
from zoo import FEW, FEW_AT_FIRST, ZOO, Entry, assert_same, copying, filled, gradients_of


def with_own(entry: Entry, model: nn.Module, plan: dtme.Plan, task: str) -> Any:
    """The plain model with one task's copies in the place of the blocks, and its modulators."""
    alone = entry.make()
    for block, tasks in plan.copies.items():
        if task in tasks:
            own = model.get_submodule(block).dtme.copies[tuple(tasks).index(task)]
            alone.get_submodule(block).load_state_dict(own.state_dict())
    dtme.apply(alone, dtme.Plan(entry.tasks, plan.modulate))
    values = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in dtme.added_parameters(alone):
            parameter.copy_(values[name])
    return alone


def loss(output: Tensor, place: int) -> Tensor:
    """One number of a task, of each in another way."""
    return (output - 0.1 * place).square().mean()


@pytest.mark.parametrize("name", list(ZOO))
def test_nothing_changes_at_first_and_then_every_task_has_blocks_of_its_own(name: str):
    entry = ZOO[name]
    base, plan, inputs = entry.make(), copying(entry), entry.inputs()
    with torch.no_grad():
        assert_same(dtme.apply(entry.make(), plan)(**inputs), base(**inputs), rtol=1e-9, atol=1e-9)
        model = filled(entry.make(), plan)
        together = model(**inputs)
        with dtme.tasks(model, per_sample=[2, 0, 1]):
            mixed = model(**inputs)
        for task in entry.tasks:
            expected = with_own(entry, model, plan, task)(**inputs)[task]
            torch.testing.assert_close(together[task], expected, rtol=1e-9, atol=1e-9)
            row = (2, 0, 1).index(entry.tasks.index(task))
            torch.testing.assert_close(mixed[task][row], expected[row], rtol=1e-9, atol=1e-9)
            if not entry.told_batch_size:
                with dtme.tasks(model, task):
                    torch.testing.assert_close(model(**inputs)[task], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FEW)
def test_gradients_are_those_of_one_task_at_a_time(name: str):
    entry = ZOO[name]
    plan, inputs = copying(entry), entry.inputs()
    model = filled(entry.make(), plan)
    outputs = model(**inputs)
    torch.stack([loss(outputs[task], place) for place, task in enumerate(entry.tasks)]).sum().backward()
    found = gradients_of(model)
    expected: dict[str, Any] = {}
    for place, task in enumerate(entry.tasks):
        alone = with_own(entry, model, plan, task)
        output = alone(**inputs)[task]
        loss(output, place).backward()
        for own, gradient in gradients_of(alone).items():
            for block, tasks in plan.copies.items():
                if task in tasks and own.startswith(f"{block}.") and not own.startswith(f"{block}.dtme."):
                    rest = own.removeprefix(f"{block}.")
                    own = f"{block}.dtme.copies.{tuple(tasks).index(task)}.{rest}"
            expected[own] = expected.get(own, 0) + gradient
    assert {name for name in found if ".copies." in name} == {name for name in expected if ".copies." in name}
    close = {"rtol": 1e-4, "atol": 1e-6} if name == "llama" else {"rtol": 1e-9, "atol": 1e-9}  # its norms are in single
    for own, gradient in found.items():
        torch.testing.assert_close(gradient, expected[own], **close, msg=lambda text, own=own: f"{own}: {text}")


@pytest.mark.parametrize("name", FEW_AT_FIRST)
def test_compiled_without_a_graph_break(name: str):
    torch._dynamo.reset()
    entry = ZOO[name]
    model, inputs = filled(entry.make(), copying(entry)), entry.inputs()
    expected = model(**inputs)
    assert_same(torch.compile(model, fullgraph=True, backend="eager")(**inputs), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", FEW)
def test_saved_loaded_copied_and_removed(name: str, tmp_path: Any):
    entry = ZOO[name]
    plan, inputs = copying(entry), entry.inputs()
    model = filled(entry.make(), plan)
    first, _, third = entry.tasks
    dtme.save_pretrained(model, tmp_path / "all")
    dtme.save_pretrained(model, tmp_path / "one", tasks=[third])
    with torch.no_grad():
        expected = model(**inputs)
        assert_same(copy.deepcopy(model)(**inputs), expected, rtol=0.0, atol=0.0)
        again = dtme.load_pretrained(entry.make(), tmp_path / "all")
        assert_same(again(**inputs), expected, rtol=0.0, atol=0.0)
        alone = dtme.load_pretrained(entry.make(), tmp_path / "one")
        torch.testing.assert_close(alone(**inputs)[third], expected[third], rtol=1e-9, atol=1e-9)
        one = dtme.load_pretrained(entry.make(), tmp_path / "all", tasks=[first])
        torch.testing.assert_close(one(**inputs)[first], expected[first], rtol=1e-9, atol=1e-9)
        dtme.remove(model)
        plain = entry.make()
        assert list(model.state_dict()) == list(plain.state_dict())
        assert not any("forward" in vars(module) for module in model.modules())
        assert_same(model(**inputs), plain(**inputs), rtol=0.0, atol=0.0)
