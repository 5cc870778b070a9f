"""Plans: their JSON, what they refuse, and the parameters they promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import WIDTH, tiny_vit

import dtme
from dtme.attach.apply import apply, remove

TASKS = ("depth", "normals", "semseg", "scene")
BLOCKS = tuple(f"blocks.{d}" for d in range(4))
placements = st.dictionaries(st.sampled_from(BLOCKS), st.lists(st.sampled_from(TASKS), unique=True))
plans = st.builds(
    dtme.Plan,
    tasks=st.permutations(TASKS),
    modulate=placements,
    expand=placements,
    tokens_per_task=st.integers(1, 3),
    rank=st.integers(1, 8),
    modulator=st.sampled_from(["affine", "batchnorm"]),
    joint_tokens=st.booleans(),
)


@given(plans)
def test_json_keeps_a_plan(plan: dtme.Plan):
    again = dtme.Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert list(again.blocks) == list(plan.blocks)


def test_a_file_keeps_a_plan(tmp_path: Path):
    plan = dtme.Plan(("a", "b"), {"x": ("b", "a")}, adapt={"y": ("a",)}, rank=2)
    plan.save(tmp_path / "made" / "plan.json")
    assert dtme.Plan.load(tmp_path / "made" / "plan.json") == plan
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["plan.json"]
    assert plan.modulate["x"] == ("a", "b")  # in the order of the tasks
    assert plan != dtme.Plan(("a", "b"), {"x": ("a",)})


def test_a_plan_is_laid_out_for_editing_and_mentions_copies_where_there_are_some():
    plan = dtme.Plan(("a", "b"), {"x": ("a",)})
    assert plan.to_json().splitlines()[:2] == ["{", '  "format": "dtme.plan",']
    assert set(plan.to_dict()) == {
        "tasks", "modulate", "expand", "adapt", "tokens_per_task", "rank", "modulator", "joint_tokens", "adapt_layers",
    }  # fmt: skip
    copied = dtme.Plan(("a", "b"), copies={"x": ("a",)}, notes=("said",))
    assert set(copied.to_dict()) == {*plan.to_dict(), "copies"}
    assert dtme.Plan.from_json(copied.to_json()) == copied
    assert "blocks.7" in str(dtme.Plan(("a", "b"), {"blocks.7": ("a",)}))


def test_what_is_no_plan_is_told_by_its_kind():
    with pytest.raises(ValueError, match=r"^mine is a list, no plan"):
        dtme.Plan.from_dict(["a"], "mine")  # pyright: ignore[reportArgumentType]


def test_a_plan_without_optional_fields_is_read():
    text = json.dumps({"format": "dtme.plan", "version": 1, "tasks": ["a", "b"], "modulate": {"x": ["a"]}})
    assert dtme.Plan.from_json(text) == dtme.Plan(("a", "b"), {"x": ("a",)})


MODEL = tiny_vit(TASKS)


@given(plans)
def test_the_closed_formula_counts_what_apply_adds(plan: dtme.Plan):
    apply(MODEL, plan)
    try:
        added = dict(dtme.added_parameters(MODEL))
        assert sum(parameter.numel() for parameter in added.values()) == plan.parameters(WIDTH)
        assert all(parameter.requires_grad for parameter in added.values())
    finally:
        remove(MODEL)


def test_widths_may_differ_between_blocks():
    plan = dtme.Plan(("a", "b"), {"x": ("a", "b")}, {"y": ("a",), "x": ("b",)}, tokens_per_task=3)
    assert plan.parameters({"x": 10, "y": 100}) == 2 * 10 * 2 + 3 * 100 + 3 * 10
    with pytest.raises(ValueError, match=r"After apply: sum\(p\.numel\(\)"):
        dtme.Plan(("a", "b"), adapt={"x": ("a",)}).parameters(8)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tasks": "depth"}, "tasks='depth': give a sequence of task names"),
        ({"tasks": ("a", 1)}, "give a sequence of task names"),
        ({"tasks": ("a", "")}, "give a sequence of task names"),
        ({"tasks": ()}, "at least one task is needed"),
        ({"tasks": ("a", "a")}, "no name may occur twice"),
        ({"modulate": ["x"]}, r"modulate=\['x'\]: give a mapping from block names"),
        ({"expand": {"x": "ab"}}, r"expand\['x'\]='ab': give a sequence of task names"),
        ({"modulate": {"x": ("c",)}}, r"modulate\['x'\]=\('c',\): each of \('a', 'b'\) may occur once"),
        ({"adapt": {"x": ("a", "a")}}, r"adapt\['x'\]=\('a', 'a'\): each of"),
        ({"tokens_per_task": 0}, "tokens_per_task=0: give a whole number of at least 1"),
        ({"tokens_per_task": 1.5}, "tokens_per_task=1.5"),
        ({"rank": True}, "rank=True"),
        ({"modulator": "layernorm"}, "modulator='layernorm': choose 'affine' or 'batchnorm'"),
        ({"joint_tokens": 1}, "joint_tokens=1: give True or False"),
    ],
)
def test_fields_that_do_not_fit_are_named(fields: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        dtme.Plan(**{"tasks": ("a", "b"), **fields})
    text = json.dumps({"format": "dtme.plan", "version": 1, "tasks": ["a", "b"], **fields})
    with pytest.raises(ValueError, match=r"mine\.json: "):
        dtme.Plan.from_json(text, "mine.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not readable JSON"),
        ('{"format": "dtme.plan", "tas', "is not readable JSON .*cut short"),
        ("[]", "holds 'list', expected the format 'dtme.plan'"),
        ("{}", "holds None, expected"),
        ('{"format": "dtme.report", "version": 1}', "holds 'dtme.report'"),
        ('{"format": "dtme.plan", "version": 2}', "has version 2 of dtme.plan; this library reads"),
        ('{"format": "dtme.plan", "version": 1}', "no 'tasks'"),
        ('{"format": "dtme.plan", "version": 1, "tasks": ["a"], "task": 1}', r"unknown fields \['task'\]"),
        ('{"format": "dtme.plan", "version": 1, "tasks": null}', "plan.json"),
        ('{"format": "dtme.plan", "version": 1, "tasks": ["a"], "expand": {"x": null}}', "plan.json"),
        (b"\x89PNG\xff\xfe", "is no text file"),
    ],
)
def test_a_corrupt_or_foreign_file_is_refused(tmp_path: Path, text: str | bytes, says: str):
    path = tmp_path / "plan.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=says) as caught:
        dtme.Plan.load(path)
    assert "plan.json" in str(caught.value)
