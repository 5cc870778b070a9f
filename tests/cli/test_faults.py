"""Whose code raised: the user's, which is told by file and function, or dtme's, which refuses in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtme.cli import main
from dtme.cli.faults import find_fault

Answered = Callable[..., Any]


def changed(mine: Path, old: str, new: str) -> None:
    text = mine.read_text(encoding="utf-8")
    assert old in text
    mine.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "function", "error"),
    [
        ("return Model()", "return helper()", "model", "NameError: name 'helper' is not defined"),
        ("tokens = self.trunk(x)", "tokens = self.trunk(x[..., :3])", "forward", "RuntimeError: passed-in embed_dim"),
        ("model(batch).items()", "model(batch['image']).items()", "task_losses", "IndexError"),
        ("for seed in range(4)]", "for seed in range(1 // 0)]", "batches", "ZeroDivisionError"),
        ("import torch\n", "import torch\nraise ValueError('at once')\n", "the file itself", "ValueError: at once"),
        ("return Model()", "raise SystemExit('no GPU here')", "model", "SystemExit: no GPU here"),
    ],
)
def test_the_users_own_code_is_named(
    mine: Path, answered: Answered, old: str, new: str, function: str, error: str, capsys: pytest.CaptureFixture[str]
):
    changed(mine, old, new)
    found = answered("analyze", "mine.py", code=3)
    assert (found["file"], found["function"], found["exit_code"]) == (str(mine), function, 3)
    assert found["error"].startswith(error)
    assert main(["analyze", "mine.py"]) == 3
    said = capsys.readouterr().err
    assert f"dtme: {mine} raised in {function}, line {found['line']}:" in said
    assert "site-packages" not in said
    assert "dtme/measure" not in said


def test_what_a_worker_of_a_loader_raised_is_the_users():
    """Torch raises it again from code of its own, with the worker's traceback in words."""
    words = (
        'Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "data.py"'
    )
    fault = find_fault(KeyError(words))
    assert fault is not None
    assert 'File "data.py"' in str(fault)
    assert find_fault(KeyError("of nobody")) is None


def test_a_line_that_is_no_python_is_the_users(mine: Path, answered: Answered):
    changed(mine, "def model():", "def model(:")
    found = answered("doctor", "mine.py", code=3)
    assert found["file"] == str(mine)
    assert found["error"].endswith("SyntaxError: invalid syntax")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"semseg": nn.Linear(8, 3)', '"semseg": nn.Identity()', None),
        (
            "{task: output.square().mean() for task, output in model(batch).items()}",
            "None",
            "task_losses returned None",
        ),
        ("return Model()", "return 3", "model is a int"),
        ("def batches():", "def other():", "no function 'batches'"),
    ],
)
def test_what_dtme_refuses_is_a_sentence(mine: Path, answered: Answered, old: str, new: str, words: str | None):
    changed(mine, old, new)
    if words is None:
        answered("analyze", "mine.py")
        return
    code = 2 if "no function" in words else 1
    found = answered("analyze", "mine.py", code=code)
    assert words in found["error"]
    assert found.keys() == {"error", "exit_code"}


def test_a_file_called_like_a_module_in_use_is_refused(mine: Path, answered: Answered):
    mine.rename(mine.with_name("torch.py"))
    assert "'torch', which is in use" in answered("analyze", "torch.py", code=2)["error"]


def test_a_file_may_import_its_neighbours_and_leaves_no_bytecode(mine: Path, answered: Answered):
    mine.rename(mine.with_name("neighbour_of_mine.py"))
    mine.write_text("from neighbour_of_mine import model, task_losses, batches\n", encoding="utf-8")
    answered("analyze", "mine.py")
    assert not list(mine.parent.rglob("*.pyc"))
