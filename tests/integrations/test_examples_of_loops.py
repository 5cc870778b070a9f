"""Each loop's example is short, trains, expands half way, and resumes where it can be asked to."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import dtme

EXAMPLES = ("own_loop", "with_accelerate", "with_lightning", "with_trainer")
FOLDER = Path(__file__).parents[2] / "examples"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*The number of training batches.*"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_trains_and_expands(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60
    example: Any = importlib.import_module(name)
    model = example.main(str(tmp_path), steps=8)
    plan = dtme.plan_of(model)
    assert plan is not None
    assert plan.adapt
    assert str(plan) in capsys.readouterr().out
    moved = [bool(parameter.any()) for own, parameter in dtme.added_parameters(model) if own.endswith(".up")]
    assert moved, "low-rank updates start at zero"
    assert all(moved)


@pytest.mark.parametrize("name", ["own_loop", "with_accelerate"])
def test_it_resumes(name: str, tmp_path: Path):
    example: Any = importlib.import_module(name)
    first = example.main(str(tmp_path), steps=8)
    again = example.main(str(tmp_path), steps=8, resume=True)
    for own, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[own]), own
