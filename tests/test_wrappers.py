"""Names are those of the bare model, whatever is wrapped around it or a part of it: plans, reports and checkpoints fit either."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from small import TASKS, Small, features, losses
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import dtme
from dtme._wrappers import module_names, modules_by_name, unwrapped
from dtme.trunk.blocks import find_blocks


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def trunk_compiled(model: Any) -> Any:
    for place, block in enumerate(model.blocks):
        model.blocks[place] = compiled(block)
    return model


def every_second_checkpointed(model: Any) -> Any:
    model.blocks[1] = checkpoint_wrapper(model.blocks[1])
    return model


def parts_compiled(model: Any) -> Any:
    for block in model.blocks:
        block.mlp = compiled(block.mlp)
    model.heads["a"] = compiled(model.heads["a"])
    return model


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "compiled": compiled,
    "data parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "twice": lambda model: compiled(nn.DataParallel(model)),
    "blocks compiled": trunk_compiled,
    "a block checkpointed": every_second_checkpointed,
    "parts compiled": parts_compiled,
}
AT_DOORS = dtme.Plan(TASKS, {"blocks.1": TASKS}, {"blocks.2": TASKS})
PLAN = dtme.Plan(TASKS, {"blocks.1": TASKS}, {"blocks.2": TASKS}, {"blocks.1": TASKS, "blocks.2.mlp": TASKS}, rank=2)


pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # dynamo's


@pytest.fixture(autouse=True)
def _compile_anew() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def names_in(folder: Path) -> list[str]:
    """All names in a checkpoint."""
    config = json.loads((folder / "config.json").read_text())
    found = [json.dumps(config)]
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found += tensors.keys()
    return found


@pytest.mark.parametrize("name", WRAPPED)
def test_blocks_reports_and_plans_have_the_names_of_the_bare_model(name: str):
    bare, model = Small(), WRAPPED[name](Small())
    model(features())  # what is compiled now knows of no hooks
    assert list(find_blocks(model)) == list(find_blocks(bare))
    report, expected = (dtme.analyze(own, losses, [features()]) for own in (model, bare))
    assert report.blocks == expected.blocks
    torch.testing.assert_close(report.range_rate, expected.range_rate)
    assert report.plan() == expected.plan()
    assert report.plan(max_cost=1.5) == expected.plan(max_cost=1.5)


@pytest.mark.parametrize("name", WRAPPED)
def test_a_plan_fits_either_and_so_does_what_was_saved_of_it(name: str, tmp_path: Path):
    plan = AT_DOORS if "compiled" in name else PLAN
    base = Small()
    model = WRAPPED[name](copy.deepcopy(base))
    assert dtme.apply(model, plan) is model
    with torch.no_grad():
        for place, (_, parameter) in enumerate(dtme.added_parameters(model)):
            parameter += torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter) + 0.01 * place
        assert {name for name, _ in dtme.added_parameters(model)} <= {name for name, _ in model.named_parameters()}
        expected = model(features())
        for folder, whole in ((tmp_path / "inserts", False), (tmp_path / "whole", True)):
            dtme.save_pretrained(model, folder, base=whole)
            wrappers = ("_orig_mod", "_checkpoint_wrapped", '"module.')
            assert not any(own in held for held in names_in(folder) for own in wrappers)
            bare = dtme.load_pretrained(copy.deepcopy(base), folder)
            torch.testing.assert_close(bare(features()), expected)
            dtme.save_pretrained(bare, folder, base=whole)
        again = dtme.load_pretrained(WRAPPED[name](copy.deepcopy(base)), tmp_path / "whole")
        torch.testing.assert_close(again(features()), expected)
        with dtme.tasks(model, "a"):
            torch.testing.assert_close(model(features())["a"], expected["a"])
        dtme.remove(model)
        torch.testing.assert_close(model(features()), base(features()))


@pytest.mark.parametrize(
    ("compile_some", "plan", "what"),
    [
        (trunk_compiled, {"adapt": {"blocks.1": TASKS}}, "blocks.1"),
        (trunk_compiled, {"expand": {"blocks.1": ("a",)}}, "blocks.1"),
        (trunk_compiled, {"modulate": {"blocks.1.mlp": TASKS}}, "blocks.1"),
        (parts_compiled, {"adapt": {"blocks.1": TASKS}}, "blocks.1.mlp"),
        (parts_compiled, {"copies": {"blocks.1.mlp": ("a",)}}, "blocks.1.mlp"),
    ],
)
def test_inserts_inside_what_is_compiled_by_itself_are_refused(compile_some: Any, plan: dict[str, Any], what: str):
    model = compile_some(Small())
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=rf"'{what}'.* is compiled by itself"):
        dtme.apply(model, dtme.Plan(TASKS, **plan))
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", WRAPPED)
def test_the_plan_beside_a_checkpoint_fits_either(name: str, tmp_path: Path):
    model = dtme.apply(WRAPPED[name](Small()), AT_DOORS, branches={"a": "heads.a", "b": "heads.b"})
    dtme.save_plan(model, tmp_path)
    bare = dtme.resume(Small(), tmp_path)
    assert dtme.plan_of(bare) == dtme.plan_of(model) == AT_DOORS
    assert dtme.plan_of(dtme.resume(WRAPPED[name](Small()), tmp_path)) == AT_DOORS


def test_branches_may_be_given_as_wrapped_modules_or_what_is_in_them():
    model: Any = parts_compiled(Small())
    for head in (model.heads["a"], unwrapped(model.heads["a"])):
        dtme.remove(dtme.apply(model, AT_DOORS, branches={"a": head, "b": "heads.b"}))
        assert module_names(model)[head] == "heads.a"


def test_what_a_user_calls_so_is_no_wrapper():
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    model._orig_mod = nn.Linear(2, 2)
    assert list(modules_by_name(model)) == ["", "module", "_orig_mod"]
