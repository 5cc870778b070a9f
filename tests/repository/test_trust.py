"""The campaigns of `make trust` in their short form: seconds, fixed seeds, nothing found; and each of them can find."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.trust import flips, fuzz, kills, load
from benchmarks.trust.specimens import SPECIMENS


def test_spoilt_files_are_answered_by_name():
    inputs, faults = fuzz.run(4.0, seed=0)
    assert set(inputs) == {one.name for one in SPECIMENS}
    assert inputs.total() > 10 * len(SPECIMENS)
    assert not faults


def test_no_flipped_bit_is_taken_in_silence():
    flipped, silent = flips.run(2.0, seed=0)
    assert flipped.total() > 20
    assert not silent


def test_whenever_a_writer_is_killed_one_whole_file_is_there():
    killed, lost = kills.run(2.0, seed=0)
    assert all(killed.values())
    assert not lost


def test_who_is_served_beside_an_analysis_gets_the_right_answers():
    answers, wrong, grown = load.run(3.0)
    assert {"coroutines", "analysis"} | {f"thread {place}" for place in range(load.THREADS)} == set(answers)
    assert not wrong
    assert grown < load.MOST_GROWTH


@given(st.binary(max_size=300))
def test_any_bytes_in_place_of_any_file(whole: dict[str, Path], content: bytes):
    for one in SPECIMENS:
        path = whole[one.name] / one.name
        path.write_bytes(content)
        assert fuzz.find_fault(one, whole[one.name]) is None, one.name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {one.name: tmp_path_factory.mktemp("whole") for one in SPECIMENS}
    for one in SPECIMENS:
        one.write(folders[one.name])
    return folders


@pytest.mark.parametrize("error", [KeyError("a"), RecursionError(), OverflowError("b"), ValueError("of no file")])
def test_an_answer_without_the_name_is_found(error: Exception, tmp_path: Path):
    def read(folder: Path) -> None:
        raise error

    broken = dataclasses.replace(SPECIMENS[0], read=read)
    assert fuzz.find_fault(broken, tmp_path) is not None


def test_a_flip_that_nobody_notices_is_found(monkeypatch: pytest.MonkeyPatch):
    careless = dataclasses.replace(SPECIMENS[0], digested=True)  # a plan by hand has no digest
    monkeypatch.setattr(flips, "SPECIMENS", (careless,))
    assert flips.run(0.5, seed=0)[1]
