import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.runner.cache import cache_dir, cached


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path))
    return tmp_path


def tensors():
    return {"a": torch.arange(1000, dtype=torch.uint8), "b": torch.randn(3, 4).T, "c": torch.tensor(1.5).bfloat16()}


def never():
    raise AssertionError("was made again")


def test_the_folder_follows_the_environment(monkeypatch, folder):
    assert cache_dir() == folder
    monkeypatch.delenv("DTME_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "dtme"


def test_round_trip_keeps_values_types_and_shapes(folder):
    made = cached("deep/er/key", tensors)
    kept = cached("deep/er/key", never)
    assert kept.keys() == made.keys()
    for name, tensor in made.items():
        assert kept[name].dtype == tensor.dtype
        assert torch.equal(kept[name], tensor)
    assert [path.name for path in (folder / "deep" / "er").iterdir()] == ["key.safetensors"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "garbage", "empty"])
def test_a_damaged_file_is_made_again(folder, damage):
    made = cached("key", tensors)
    path = folder / "key.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
    path.write_bytes({"truncated": data[:-7], "flipped": data, "garbage": b"\x07" * 99, "empty": b""}[damage])
    again = cached("key", lambda: made)
    assert torch.equal(again["a"], made["a"])
    assert torch.equal(cached("key", never)["b"], made["b"])


def test_a_file_of_another_writer_is_made_again(folder):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, folder / "key.safetensors")
    assert cached("key", tensors)["a"].shape == (1000,)


def test_failing_to_make_keeps_nothing(folder):
    def fails():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("key", fails)
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("DTME_CACHE", str(folder / "file"))
    with pytest.raises(OSError, match=r"file.*key\.safetensors; set DTME_CACHE"):
        cached("key", tensors)


def test_processes_that_make_the_same_file_at_once(folder):
    script = (
        "import sys, time, torch; from experiments.runner.cache import cached\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for i in range(20): assert cached(f'k{i}', lambda: {'x': torch.full((50_000,), i)})['x'].eq(i).all()\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.communicate(b"go\n", timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"k{i}.safetensors" for i in range(20))
    assert cached("k7", never)["x"].eq(7).all()
