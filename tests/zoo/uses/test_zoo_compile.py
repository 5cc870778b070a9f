"""torch.compile after `apply`: one graph, the same numbers, and the new ones after another plan."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch

import dtme
from zoo import FEW_AT_FIRST, TWO_AT_FIRST, ZOO, assert_same, filled, little, modulation


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.cell("compile")
@pytest.mark.parametrize("name", FEW_AT_FIRST)
def test_compiled_without_a_graph_break(name: str):
    entry = ZOO[name]
    model, inputs = filled(entry.make(), little(entry)), entry.inputs()
    expected = model(**inputs)
    assert_same(torch.compile(model, fullgraph=True, backend="eager")(**inputs), expected)


@pytest.mark.parametrize("name", TWO_AT_FIRST)
def test_a_compiled_model_follows_another_plan(name: str):
    entry = ZOO[name]
    model, inputs = entry.make(), entry.inputs()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    plain = compiled(**inputs)
    last = {entry.blocks[-1]: entry.tasks[:2]}
    for plan in (modulation(entry), dtme.Plan(entry.tasks, last)):
        filled(model, plan)
        outputs = compiled(**inputs)
        assert_same(outputs, copy.deepcopy(model)(**inputs))
        assert not torch.allclose(outputs[entry.tasks[0]], plain[entry.tasks[0]])
        dtme.remove(model)
    assert_same(compiled(**inputs), plain)
