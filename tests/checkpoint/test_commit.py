"""Saves over earlier ones: whenever they end, one of the two is there, whole; and what was damaged since is told."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden.make import HERE, base
from models import tiny_vit

import dtme
from dtme._files import temporary_beside, write_text, written_whole
from dtme.checkpoint.commit import NEXT, finish, written_together

TASKS = ("depth", "semseg")
PLAN = dtme.Plan(TASKS, {"blocks.1": TASKS}, {"blocks.2": TASKS})


def filled(value: float) -> torch.nn.Module:
    model = dtme.apply(tiny_vit(TASKS), PLAN)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.fill_(value)
    return model


def loaded(folder: Path) -> float:
    model = dtme.load_pretrained(tiny_vit(TASKS), folder)
    values = {float(value) for _, parameter in dtme.added_parameters(model) for value in parameter.detach().flatten()}
    assert len(values) == 1, "two saves are mixed"
    return values.pop()


@pytest.mark.parametrize("with_base", [False, True])
def test_whichever_call_is_the_last_one_save_is_whole(with_base: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every rename, chmod and removal of a save is once the moment of death: nothing behind it is done, not even clean-up."""
    first, second = filled(1.0), filled(2.0)
    ends = set()
    for last in range(40):
        folder = tmp_path / str(last)
        dtme.save_pretrained(first, folder, base=not with_base)
        calls: list[object] = []

        def dies(real, last=last, calls=calls):
            def call(*args, **options):
                calls.append(real)
                if len(calls) > last:
                    raise SystemExit  # every call from here on: the process is dead
                return real(*args, **options)

            return call

        with monkeypatch.context() as patch:
            for owner, name in (
                (Path, "replace"),
                (os, "rename"),
                (Path, "rmdir"),
                (Path, "chmod"),
                (shutil, "rmtree"),
                (Path, "unlink"),
            ):
                patch.setattr(owner, name, dies(getattr(owner, name)))
            try:
                dtme.save_pretrained(second, folder, base=with_base)
                done = True
            except SystemExit:
                done = False
        found = loaded(folder)
        ends.add((done, found))
        dtme.save_pretrained(filled(3.0), folder)
        assert loaded(folder) == 3.0
        assert not (folder / NEXT).exists()
        if done:
            break
    assert done
    assert ends == {(False, 1.0), (False, 2.0), (True, 2.0)}


def test_a_first_save_that_was_cut_off_after_it_counted_is_there(tmp_path: Path):
    dtme.save_pretrained(filled(1.0), tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole").rename(tmp_path / "cut" / NEXT)
    assert loaded(tmp_path / "cut") == 1.0
    assert dtme.plan_of(dtme.resume(tiny_vit(TASKS), tmp_path / "cut")) == PLAN


def test_files_that_are_moved_by_another_process_are_no_error(tmp_path: Path):
    with written_together(tmp_path, ("a",)) as fresh:
        (fresh / "a").write_text("1")
    finish(tmp_path, ("a",))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "base.safetensors"])
def test_a_flipped_bit_is_told(name: str, tmp_path: Path):
    dtme.save_pretrained(filled(1.0), tmp_path, base=True)
    path = tmp_path / name
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(25):
        place = int(torch.randint(8 * len(data), (), generator=generator))
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=name.replace(".", r"\.") + "|config"):
            dtme.load_pretrained(tiny_vit(TASKS), tmp_path)


def test_an_older_checkpoint_loads_with_a_note(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "dtme"):
        dtme.load_pretrained(base(), HERE / "v2")
    assert "before checkpoints had digests" in caplog.text


def test_what_killed_writers_left_is_taken_away_and_what_others_write_is_not(tmp_path: Path):
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    path, others = tmp_path / "plan.json", tmp_path / "other.json"
    own = str(os.getpid())
    left = [Path(str(temporary_beside(path)).replace(f"-{own}.", f"-{ended.stdout.strip()}.")) for _ in range(2)]
    left[0].write_text("half")
    left[1].mkdir()
    kept = [temporary_beside(path), Path(str(temporary_beside(others)).replace(own, ended.stdout.strip()))]
    for one in kept:
        one.write_text("in writing")
    write_text(path, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, *kept])


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(mask: int, tmp_path: Path):
    before = os.umask(mask)
    try:
        dtme.save_pretrained(filled(1.0), tmp_path / "new", base=True)
        PLAN.save(tmp_path / "plan.json")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in [*(tmp_path / "new").iterdir(), tmp_path / "plan.json"]}
    assert modes == {0o666 & ~mask}


FULL = """
import resource, sys, torch
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from test_commit import filled
import dtme
model = filled(2.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    dtme.save_pretrained(model, sys.argv[1], base=True)
except OSError as error:
    print(error.errno, error)
"""


def test_a_full_disk_is_told_by_file_and_room_and_the_earlier_save_stands(tmp_path: Path):
    dtme.save_pretrained(filled(1.0), tmp_path, base=True)
    for limit in ("200", "3000"):
        helpers = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
        script = [sys.executable, "-c", FULL, str(tmp_path), limit, *helpers]
        told = subprocess.run(script, capture_output=True, text=True, check=True).stdout
        assert f"{tmp_path}/" in told, told
        assert "MB are free there" in told
    assert loaded(tmp_path) == 1.0
    assert not list(tmp_path.glob(".*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_an_error_of_another_kind_stays_what_it_is(tmp_path: Path):
    with pytest.raises(KeyError, match="own"), written_whole(tmp_path / "file"):
        raise KeyError("own")
    assert not list(tmp_path.iterdir())
