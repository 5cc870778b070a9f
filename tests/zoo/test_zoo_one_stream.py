"""One stream alone takes at a second call the way that was found at the first: over the whole zoo, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import dtme
from dtme import crossing
from zoo import ADAPTABLE, EXPANDABLE, ZOO, adaptation, everything, expansion, filled, modulation

KINDS = [(modulation, list(ZOO)), (adaptation, ADAPTABLE), (expansion, EXPANDABLE), (everything, list(ZOO))]
PLANNED = [(name, plan_of) for plan_of, names in KINDS for name in names if not ZOO[name].told_batch_size]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The blocks whose calls have been looked at."""
    found: list[str] = []
    entered = crossing.entered

    def noted(insert: Any, *given: Any) -> Any:
        found.append(insert.name)
        return entered(insert, *given)

    monkeypatch.setattr(crossing, "entered", noted)
    return found


@pytest.mark.parametrize(("name", "plan_of"), PLANNED, ids=lambda value: getattr(value, "__name__", None))
@torch.no_grad()
def test_the_way_that_was_found_is_the_way(
    name: str, plan_of: Callable[..., dtme.Plan], looked_at: list[str], monkeypatch: pytest.MonkeyPatch
):
    entry = ZOO[name]
    plan = plan_of(entry)
    model = filled(entry.make(), plan)
    for samples in (3, 2):
        inputs = entry.inputs(samples)
        for task in entry.tasks:
            with dtme.tasks(model, task):
                with monkeypatch.context() as patch:
                    patch.setattr(crossing, "kind_of", lambda *_: None)
                    expected = model(**inputs)[task]
                model(**inputs)
                looked_at.clear()
                assert torch.equal(model(**inputs)[task], expected)
            if plan_of is modulation or (plan_of is adaptation and name != "segformer"):
                assert not {*plan.blocks} & {*looked_at}


@pytest.mark.parametrize("name", ["ViT", "vit", "torch encoder, tokens first"])
@torch.no_grad()
def test_task_tokens_go_the_known_way_where_nothing_is_said_of_positions(name: str, looked_at: list[str]):
    entry = ZOO[name]
    model, inputs = filled(entry.make(), expansion(entry)), entry.inputs()
    with dtme.tasks(model, entry.tasks[0]):
        model(**inputs)
        looked_at.clear()
        model(**inputs)
    assert not looked_at
