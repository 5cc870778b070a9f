"""What 0.1.0 pickled is refused with a sentence that says what to do, and nothing that is there is hidden by it."""

from __future__ import annotations

import importlib
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import dtme
from dtme._moved import GONE, explain_gone_modules

REMEDY = r"pickled by dtme 0\.1\.0.*dtme\.save_pretrained\(model, folder\).*dtme\.load_pretrained\(model, folder\)"


def stream(module: str, name: str) -> bytes:
    """A pickle by hand, as any version of it: the class of that name, and a call of it with nothing."""
    return b"c" + f"{module}\n{name}\n".encode() + b")R."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("dtme.insert", "Insert"),
        ("dtme.insert", "Passage"),
        ("dtme.routing", "Routing"),
        ("dtme.apply", "Applied"),
        ("dtme.low_rank", "LowRank"),
        ("dtme.bench.rows", "Row"),
        ("dtme.plan", "Plan"),
        ("dtme.report", "ConflictReport"),
        ("dtme.streams", "Streams"),
    ],
)
def test_a_pickle_of_the_first_version_says_what_to_do(module: str, name: str):
    with pytest.raises(ModuleNotFoundError, match=REMEDY):
        pickle.loads(stream(module, name))  # noqa: S301


def test_a_model_that_torch_saved_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    """The file of a whole model, as 0.1.0 left it: made by a class that says it is of a module that is gone."""

    class Insert(nn.Module):
        __module__ = "dtme.insert"
        __qualname__ = "Insert"

    then = type(sys)("dtme.insert")
    then.Insert = Insert
    file = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "dtme.insert", then)
        torch.save(nn.Sequential(nn.Linear(2, 2), Insert()), file)
    file.seek(0)
    with pytest.raises(ModuleNotFoundError, match=REMEDY):
        torch.load(file, weights_only=False)


def test_it_is_said_where_the_file_is_the_first_to_name_dtme():
    code = f"import pickle; pickle.loads({stream('dtme.insert', 'Insert')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ModuleNotFoundError: dtme.insert is of dtme 0.1.0" in done.stderr


@pytest.mark.parametrize("module", sorted(GONE))
def test_a_gone_module_is_told_by_its_name(module: str):
    with pytest.raises(ModuleNotFoundError, match=rf"^dtme\.{module} is of dtme 0\.1\.0") as raised:
        importlib.import_module(f"dtme.{module}")
    assert raised.value.name == f"dtme.{module}"


def test_other_names_that_are_missing_are_told_as_python_does():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'dtme\.never'"):
        importlib.import_module("dtme.never")
    with pytest.raises(AttributeError, match=r"module 'dtme\.plan' has no attribute 'never'"):
        _ = importlib.import_module("dtme.plan").never


def test_what_this_version_pickles_is_loaded():
    plan = dtme.Plan(("a", "b"), modulate={"blocks.0": ("a",)})
    assert pickle.loads(pickle.dumps(plan)) == plan  # noqa: S301


def test_asking_twice_is_asking_once():
    before = list(sys.meta_path)
    explain_gone_modules()
    assert sys.meta_path == before
