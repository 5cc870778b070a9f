"""Jobs: order, side by side, errors, interruption."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.runner.jobs import Job, WorkerLostError, run


class Seen:
    def __init__(self) -> None:
        self.updates: list[tuple[str, int, int]] = []

    def update(self, name: str, done: int, total: int) -> None:
        self.updates.append((name, done, total))


def note(folder: str, name: str, report) -> None:
    report(1, 2)
    Path(folder, name).write_text(str(time.monotonic_ns()))


def fail(report) -> None:
    raise ValueError("the job's own words")


def wait(folder: str, report) -> None:
    Path(folder, "waiting").touch()
    time.sleep(60)


def test_jobs_run_after_those_they_wait_for_and_report(tmp_path: Path):
    seen = Seen()
    jobs = [
        Job("last", note, (str(tmp_path), "last"), after=("first", "second")),
        Job("first", note, (str(tmp_path), "first")),
        Job("second", note, (str(tmp_path), "second")),
    ]
    run(jobs, seen, workers=2)
    ended = {name: int((tmp_path / name).read_text()) for name in ("first", "second", "last")}
    assert ended["last"] > max(ended["first"], ended["second"])
    assert ("first", 1, 2) in seen.updates
    assert [name for name, done, total in seen.updates if done == total == 1][-1] == "last"


def test_the_first_error_stops_all_and_is_raised(tmp_path: Path):
    began = time.monotonic()
    with pytest.raises(ValueError, match="own words"):
        run([Job("fails", fail), Job("waits", wait, (str(tmp_path),))], Seen(), workers=2)
    assert time.monotonic() - began < 40


def test_no_jobs_need_no_processes():
    run([], Seen())


def test_unknown_and_circular_waits_are_errors():
    with pytest.raises(ValueError, match="none of them"):
        run([Job("a", fail, after=("b",))], Seen())
    with pytest.raises(ValueError, match="wait for each other"):
        run([Job("a", fail, after=("b",)), Job("b", fail, after=("a",))], Seen())


def die(folder: str, report) -> None:
    Path(folder, "died").write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGKILL)


def outlive(folder: str, report) -> None:
    Path(folder, "waiting").write_text(str(os.getpid()))
    time.sleep(120)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_worker_is_told_by_its_job_and_the_others_end(tmp_path: Path):
    began = time.monotonic()
    jobs = [Job("waits", outlive, (str(tmp_path),)), Job("dies", die, (str(tmp_path),))]
    with pytest.raises(WorkerLostError, match="the worker of the job 'dies' was killed"):
        run(jobs, Seen(), workers=2)
    assert time.monotonic() - began < 60
    if (tmp_path / "waiting").exists():
        assert not is_running(int((tmp_path / "waiting").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_however_the_command_ends_its_workers_end(tmp_path: Path, number: signal.Signals):
    code = (
        "from experiments.runner.jobs import Job, run\n"
        "import signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a suite run in the background ignores it
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"  # as `main` has it
        "from test_jobs import Seen, outlive\n"
        "if __name__ == '__main__': run([Job('waits', outlive, (sys.argv[2],))], Seen(), workers=1)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen(
        [sys.executable, script, Path(__file__).parent, tmp_path],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[3])))},
    )
    while not (tmp_path / "waiting").exists() or not (tmp_path / "waiting").read_text():
        assert parent.poll() is None
        time.sleep(0.1)
    worker = int((tmp_path / "waiting").read_text())
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=120)
    assert parent.returncode != 0
    if number != signal.SIGKILL:
        assert b"KeyboardInterrupt" in errors
    until = time.monotonic() + 10
    while is_running(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(worker)


def span(folder: str, name: str, report) -> None:
    began = time.monotonic_ns()
    time.sleep(0.5)
    Path(folder, name).write_text(f"{began} {time.monotonic_ns()}")


def test_a_job_that_takes_time_has_nothing_beside_it(tmp_path: Path):
    jobs = [Job(name, span, (str(tmp_path), name), alone=name == "priced") for name in ("a", "priced", "b", "c")]
    run(jobs, Seen(), workers=2)
    spans = {name: tuple(map(int, (tmp_path / name).read_text().split())) for name in ("a", "priced", "b", "c")}
    began, ended = spans.pop("priced")
    assert all(last <= began or first >= ended for first, last in spans.values())
    assert max(spans["b"][0], spans["c"][0]) < min(spans["b"][1], spans["c"][1])  # the others do run side by side
