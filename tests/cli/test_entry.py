"""What is printed where, and the exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dtme
from benchmarks.clock import import_beyond_torch, seconds_of_help
from dtme.cli import main
from dtme.cli.entry import COMMANDS

Answered = Callable[..., Any]
Said = pytest.CaptureFixture[str]


def test_help_and_version_need_nothing_but_python(monkeypatch: pytest.MonkeyPatch, capsys: Said):
    for name in ("tyro", "rich"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["--help"]) == 0
    assert all(f"  {name}" in capsys.readouterr().out for name in list(COMMANDS)[:1])
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dtme {dtme.__version__}\n"
    assert main(["plan", "report.json"]) == 2
    assert 'pip install "dtme[cli]"' in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_options(name: str, capsys: Said):
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"usage: dtme {name}" in said
    assert "--json" in said
    assert "one object of JSON" in " ".join(said.replace("│", "").split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_options(shell: str, capsys: Said):
    assert main(["--tyro-print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*COMMANDS, "max-cost"))


def test_without_a_command_and_with_a_wrong_one(capsys: Said, answered: Answered):
    assert main([]) == 2
    assert main(["pln"]) == 2
    assert "Is 'plan' meant?" in capsys.readouterr().err
    assert answered("plan", code=2) == {"error": "wrong usage", "exit_code": 2}
    assert "not there" in answered("plan", "report.json", code=2)["error"]


def test_env_names_versions_and_no_paths(answered: Answered):
    found = answered("env")
    assert found["dtme"] == dtme.__version__
    assert {"torch", "python", "gpus", "threads"} <= found.keys()
    assert not any(str(value).startswith("/") for value in found.values())


def test_an_interruption_is_130(mine: Path, capsys: Said):
    mine.write_text(mine.read_text().replace("return Model()", "raise KeyboardInterrupt"))
    assert main(["analyze", "mine.py"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not Path("report.json").exists()


def test_a_fault_of_ours_shows_its_traceback(mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said):
    monkeypatch.setattr(dtme, "analyze", lambda *args, **kwargs: {}["ours"])
    monkeypatch.setattr("dtme.cli.faults._is_users", lambda file: False)
    assert main(["analyze", "mine.py"]) == 70
    assert "KeyError: 'ours'\ndtme: this is a fault of dtme" in capsys.readouterr().err


def test_python_m_dtme_is_the_command():
    env = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-m", "dtme", "pln"], capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Is 'plan' meant?" in done.stderr


def test_help_is_quick_and_the_import_too():
    """Processor time, with room for a machine that is busy; the limits themselves are rows of the benchmark."""
    assert seconds_of_help() < 1.0
    assert import_beyond_torch(turns=1) < 0.6


def test_importing_dtme_loads_no_torch():
    code = "import sys, dtme; print('torch' in sys.modules, dtme.Plan.__name__, 'triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["False", "Plan"]
