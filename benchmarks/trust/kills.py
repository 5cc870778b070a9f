"""Writers that are killed at any moment, also within a write: what is there afterwards is one of what was written, whole."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

import dtme
from benchmarks.trust.specimens import filled, load
from experiments.runner.cache import cached
from experiments.runner.resume import read_state, write_state


def run(seconds: float, seed: int) -> tuple[Counter[str], list[str]]:
    """Kill for so long, every kind of writer in turn.

    Returns:
        Kills by writer, and what was lost, mixed or left lying about.
    """
    chance, until = random.Random(seed), time.monotonic() + seconds
    kills: Counter[str] = Counter()
    lost: list[str] = []
    with tempfile.TemporaryDirectory() as root:
        while time.monotonic() < until:
            for kind, (write, check) in WRITERS.items():
                folder = Path(root) / kind
                write(folder, 0)
                _kill_in(lambda folder=folder, write=write: _write_on(folder, write), chance.uniform(0.0005, 0.04))
                kills[kind] += 1
                try:
                    check(folder)
                    write(folder, 1)
                    left = [path.name for path in folder.rglob(".*")]
                    if left:
                        lost.append(f"{kind}: left {left}")
                except Exception as error:
                    lost.append(f"{kind}: {type(error).__name__}: {error}"[:200])
    return kills, lost


def _write_on(folder: Path, write: Callable[[Path, int], object]) -> None:
    for turn in range(10_000):
        write(folder, turn % 2)


def _kill_in(act: Callable[[], None], seconds: float) -> None:
    """Let a process of its own act, and kill it after so long."""
    process = os.fork()
    if not process:
        try:
            act()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


MODELS = [filled(1.0), filled(2.0)]


def _save(folder: Path, turn: int) -> None:
    dtme.save_pretrained(MODELS[turn], folder, base=turn == 1)


def _check_save(folder: Path) -> None:
    assert load(folder) in ({1.0}, {2.0}), "two saves are mixed"


def _keep(folder: Path, turn: int) -> None:
    write_state(folder / "run.pt", {"x": torch.full((2000,), float(turn))})


def _check_kept(folder: Path) -> None:
    found = read_state(folder / "run.pt")["x"]
    assert found.unique().tolist() in ([0.0], [1.0])


def _cache(folder: Path, turn: int) -> None:
    os.environ["DTME_CACHE"] = str(folder)
    (folder / "key.safetensors").unlink(missing_ok=True)
    cached("key", lambda: {"x": torch.full((2000,), float(turn))})


def _check_cached(folder: Path) -> None:
    found = cached("key", lambda: {"x": torch.full((2000,), 7.0)})["x"]
    assert len(found.unique()) == 1


def _plan(folder: Path, turn: int) -> None:
    dtme.Plan(("a", "b"), {f"x.{place}": ("a",) for place in range(50 * turn + 1)}).save(folder / "plan.json")


def _check_plan(folder: Path) -> None:
    assert len(dtme.Plan.load(folder / "plan.json").modulate) in (1, 51)


WRITERS = {
    "save_pretrained": (_save, _check_save),
    "state of a run": (_keep, _check_kept),
    "cache": (_cache, _check_cached),
    "plan": (_plan, _check_plan),
}
