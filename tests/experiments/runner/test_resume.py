"""States of unfinished runs: one flipped bit is told, and what is damaged is made anew with a warning that names the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from experiments.runner.resume import DamagedStateError, is_whole, read_again, read_state, write_down, write_state

SETTINGS = {"steps": 5, "rate": 0.1}


def test_a_state_comes_back(tmp_path: Path):
    write_down(tmp_path / "row.pt", SETTINGS, {"x": torch.arange(5), "step": 3})
    found = read_again(tmp_path / "row.pt", SETTINGS)
    assert found is not None
    assert found["step"] == 3
    assert torch.equal(found["x"], torch.arange(5))
    assert read_again(tmp_path / "row.pt", {**SETTINGS, "steps": 6}) is None
    assert read_again(tmp_path / "other.pt", SETTINGS) is None


def test_any_flipped_bit_is_told_and_the_run_begins_anew(tmp_path: Path):
    path = tmp_path / "row.pt"
    write_down(path, SETTINGS, {"x": torch.randn(50)})
    data = path.read_bytes()
    for place in torch.randint(8 * len(data), (60,), generator=torch.Generator().manual_seed(0)).tolist():
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.warns(UserWarning, match=r"row\.pt .*begins anew"):
            assert read_again(path, SETTINGS) is None


@pytest.mark.parametrize("content", [b"", b"hello", b"dtme.state 1 " + b"0" * 64 + b"\n", b"PK\x03\x04" + b"\0" * 99])
def test_other_bytes_are_told(content: bytes, tmp_path: Path):
    (tmp_path / "row.pt").write_bytes(content)
    with pytest.raises(DamagedStateError, match=r"row\.pt is damaged"):
        read_state(tmp_path / "row.pt")
    with pytest.warns(UserWarning, match=r"row\.pt"):
        assert read_again(tmp_path / "row.pt", SETTINGS) is None
    with pytest.warns(UserWarning, match=r"row\.pt .*done anew"):
        assert not is_whole(tmp_path / "row.pt")


def test_a_state_that_is_missing_is_told(tmp_path: Path):
    with pytest.warns(UserWarning, match=r"start\.pt is missing. What led to it is done anew"):
        assert not is_whole(tmp_path / "start.pt")


def test_a_state_of_an_earlier_version_is_read(tmp_path: Path):
    torch.save({"settings": '{"steps": 5, "rate": 0.1}', "run": {"step": 1}}, tmp_path / "row.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_again(tmp_path / "row.pt", SETTINGS) == {"step": 1}
    write_state(tmp_path / "row.pt", {"step": 2})
    assert read_state(tmp_path / "row.pt") == {"step": 2}
