"""Checkpoints from anywhere: what asks for too much, or holds other numbers, is refused before anything is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from models import tiny_vit
from safetensors.torch import load_file, save_file

import dtme
from dtme.attach.apply import is_applied
from dtme.attach.load_check import CARRIED
from dtme.checkpoint.files import undigested
from dtme.checkpoint.hub import write_card

TASKS = ("depth", "scene", "semseg")
PLAN = dtme.Plan(TASKS, {"blocks.1": TASKS}, {"blocks.2": TASKS}, {"blocks.3": TASKS}, rank=2)


def saved(folder: Path, **plan: Any) -> Path:
    """A checkpoint with other fields in its plan than what its weights were made by."""
    dtme.save_pretrained(dtme.apply(tiny_vit(TASKS), PLAN), folder)
    data = undigested(json.loads((folder / "config.json").read_text()))
    data["plan"].update(plan)
    (folder / "config.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"rank": 10**9}, "rank=1000000000: 4096 are the most"),
        ({"rank": 4096}, r"low_rank.* has shape \(2, 16\), expected \(4096, 16\)"),
        ({"tokens_per_task": 10**9}, "tokens_per_task=1000000000: 4096 are the most"),
        ({"tokens_per_task": 4096}, r"tokens.* has shape \(1, 16\), expected \(4096, 16\)"),
        ({"tasks": [f"t{i}" for i in range(1001)]}, "1001 of them, 1000 are the most|each of"),
        ({"adapt": {"blocks.0": list(TASKS)}}, "blocks.0.dtme.low_rank.* has shape missing"),
        ({"adapt_layers": "((.|.)*)*!"}, "no linear layer to adapt that matches"),
        ({"adapt_layers": "(a)\\1"}, "no regular expression that is matched here"),
        ({"modulate": {str(i): ["depth"] for i in range(2001)}}, "2001 blocks, 2000 are the most"),
    ],
)
def test_sizes_are_bounded_before_anything_is_made(plan: dict[str, Any], says: str, tmp_path: Path):
    model = tiny_vit(TASKS)
    with pytest.raises(ValueError, match=says) as caught:
        dtme.load_pretrained(model, saved(tmp_path, **plan))
    assert str(tmp_path) in str(caught.value) or "plan.adapt" in str(caught.value)
    assert not is_applied(model)


def test_a_plan_alone_adds_no_more_than_in_proportion():
    tasks = tuple(f"t{i}" for i in range(200))
    plan = dtme.Plan(tasks, adapt={f"blocks.{i}": tasks for i in range(4)}, rank=4096)
    with pytest.raises(
        ValueError, match=r"low-rank updates of rank 4096 of block 'blocks\.\d' it would add [\d,]+ numbers"
    ):
        dtme.apply(tiny_vit(tasks), plan)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_of_another_kind_of_number_are_refused(dtype: torch.dtype, tmp_path: Path):
    weights = load_file(saved(tmp_path) / "model.safetensors")
    weights["blocks.1.dtme.scale.depth"] = weights["blocks.1.dtme.scale.depth"].to(dtype)
    save_file(weights, tmp_path / "model.safetensors")
    model = tiny_vit(TASKS)
    with pytest.raises(
        ValueError, match=r"model\.safetensors .*scale\.depth' holds .*another kind of number than torch\.float32"
    ):
        dtme.load_pretrained(model, tmp_path)
    assert not is_applied(model)


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": [["depth"]]},
        {"tasks": [{}]},
        {"tasks": ["depth", "depth"]},
        {"branches": {"depth": {}}},
        {"branches": 5},
        {"base": {"trunk": [{"blocks": ["x"], "type": "B", "width": 1e400, "parameters": {}}], "weights": {}}},
        {"base": {"trunk": [{"blocks": 5}]}},
        {"mark": None},
        {"plan": {"tasks": "ab"}},
        {"plan": {"tasks": {"depth": 1}}},
        {"plan": {"tasks": ["a"], "modulate": {"x": [["a"]]}}},
    ],
)
def test_whatever_stands_in_a_config_is_answered_by_name(change: dict[str, Any], tmp_path: Path):
    data = json.loads((saved(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | change))
    with pytest.raises(ValueError, match=r"config\.json|does not have"):
        dtme.load_pretrained(tiny_vit(TASKS), tmp_path)


@pytest.mark.parametrize(
    "carried",
    [torch.tensor([300]), torch.tensor([1.5]), torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(9, dtype=torch.uint8)],
)
def test_a_plan_that_a_state_dict_carries_is_looked_at(carried: torch.Tensor):
    model = dtme.carry_plan(tiny_vit(TASKS))
    with pytest.raises(ValueError, match="the plan in the state dict"):
        model.load_state_dict({**model.state_dict(), CARRIED: carried})


def test_a_card_shows_names_and_does_not_obey_them(tmp_path: Path):
    task = "a|b`\n# Title\n<script>alert(1)</script>\n---\nlicense: none"
    block = "x`\n```\n| y"
    plan = dtme.Plan((task, "other"), modulate={block: (task,)})
    write_card(tmp_path, plan, plan.tasks, 'Own`\nimport os\nos.system("x")', "lab/rooms")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {"library_name": "dtme", "tags": ["dtme", "multi-task-learning"]}
    assert "<script" not in card.text
    assert [line for line in card.text.splitlines() if line.startswith("#")] == ["# rooms"]
    assert [line for line in card.text.splitlines() if line.startswith("```")] == ["```python", "```"]
    assert not any(line.startswith(("import os", "os.")) for line in card.text.splitlines())
    row = next(line for line in card.text.splitlines() if line.startswith("| `x"))
    assert row.replace("\\|", "").count("|") == 6


def test_a_model_without_numbers_is_not_saved(tmp_path: Path):
    with torch.device("meta"):
        model = dtme.apply(tiny_vit(TASKS), PLAN)
    with pytest.raises(ValueError, match=r"save_pretrained: '.*' is on the meta device"):
        dtme.save_pretrained(model, tmp_path / "none")
