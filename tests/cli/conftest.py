"""What the tests of the command share: a folder of one's own, and a small model in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dtme.cli import main

SMALL = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.trunk = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.heads = nn.ModuleDict({"depth": nn.Linear(8, 1), "semseg": nn.Linear(8, 3)})

    def forward(self, x):
        tokens = self.trunk(x)
        return {task: head(tokens) for task, head in self.heads.items()}

def model():
    return Model()

def task_losses(model, batch):
    print("printed by the user's code")
    return {task: output.square().mean() for task, output in model(batch).items()}

def batches():
    return [torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that the command runs in; what it changes of the process is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "_dtme_user_file", False):
            del sys.modules[name]


@pytest.fixture
def mine(folder: Path) -> Path:
    """A user's file."""
    path = folder / "mine.py"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture
def answered(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command with `--json`, holds standard output to one object, and gives it."""

    def run(*argv: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*argv, "--json"]) == code
        out = capsys.readouterr().out
        found = json.loads(out)
        assert isinstance(found, dict)
        assert out.count("\n") == 1
        return found

    return run
