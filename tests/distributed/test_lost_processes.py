"""A process that dies or hangs in the middle of an analysis: the others say which, and do not wait for ever."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from dtme.distributed.processes import Processes, patience

CODE = """
import logging, os, sys, time
from datetime import timedelta
import torch
from torch import distributed
from dtme.distributed import processes as module

rank, store, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
logging.basicConfig(level=logging.WARNING, format="%(message)s")
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=3, timeout=timedelta(seconds=8)
)
module.PATIENCE, module.ROLL_CALL = 0.5, 2.0
own = module.processes_of(None)
assert own.exchange(lambda: (rank, None))[0] == [0, 1, 2]
if rank == 1 and how == "dies":
    os._exit(1)
if rank == 1:
    time.sleep(4)
try:
    print("heard", own.exchange(lambda: (rank, None))[0], flush=True)
except RuntimeError as error:
    print("told:", error, flush=True)
os._exit(0)
"""


def crew(folder: Path, how: str) -> list[tuple[str, str]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(rank), str(folder / "meet"), how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    return [process.communicate(timeout=120) for process in started]


def test_a_dead_rank_is_named_by_the_others(tmp_path: Path):
    said = crew(tmp_path, "dies")
    for rank in (0, 2):
        assert said[rank][0].startswith(f"told: rank {rank} of 3: rank 1 is gone or stuck"), said[rank]
        assert "start all of them again" in said[rank][0]


def test_a_rank_that_hangs_at_any_meeting_is_waited_for_aloud(tmp_path: Path):
    said = crew(tmp_path, "hangs")
    assert [out for out, _ in said] == ["heard [0, 1, 2]\n"] * 3
    assert "rank 0 has waited 2 s for the other 2 processes" in said[0][1]
    assert "has waited" not in said[1][1]


def test_no_thread_outlives_its_meeting():
    """Python ends by force what still runs as the process ends, which with torch's compiler in it aborts the process."""
    before = threading.enumerate()
    for _ in range(50):
        with patience(Processes(size=2)):
            during = threading.enumerate()
        assert len(during) == len(before) + 1
        assert threading.enumerate() == before
