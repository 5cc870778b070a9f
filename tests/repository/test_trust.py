"""The campaigns of `make trust` in their short form: seconds, fixed seeds, nothing found; and each of them can find."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.trust import flips, fuzz, kills, load
from benchmarks.trust.mutants import PARTS, are_words, is_strictness, read_same
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


def test_what_was_once_answered_in_a_way_of_its_own_is_still_answered_by_name(whole: dict[str, Path]):
    corpus = json.loads(fuzz.CORPUS.read_text(encoding="utf-8"))
    assert set(corpus) == {one.name for one in SPECIMENS}
    for one in SPECIMENS:
        for content in map(base64.b64decode, corpus[one.name]):
            (whole[one.name] / one.name).write_bytes(content)
            assert fuzz.find_fault(one, whole[one.name]) is None, (one.name, content[:200])


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


ROOT = Path(__file__).parents[2]


def test_what_mutants_are_made_of_and_held_to_is_there():
    for part in PARTS.values():
        assert all((ROOT / "src/dtme" / module).is_file() for module in part.modules)
        assert all((ROOT / "tests" / test).is_file() for test in part.tests)
    for module, old, _ in read_same():
        text = (ROOT / "src" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert "".join(old.split()) in "".join(text.split()), f"{module} holds no line {old!r} any more"


@pytest.mark.parametrize(
    ("old", "new", "words", "strictness"),
    [
        ('raise ValueError("give one")', 'raise ValueError("XXgive oneXX")', True, False),
        ('raise ValueError("give one")', 'raise ValueError("GIVE ONE")', True, False),
        ('names["a"]', 'names["XXaXX"]', False, False),
        ("a = 1", "a = 2", False, False),
        ("zip(a, b, strict=True)", "zip(a, b, )", False, True),
        ("zip(a, b, strict=True)", "zip(a, b, strict=False)", False, True),
        ("zip(a, b, strict=True)", "zip(b, strict=True)", False, False),
    ],
)
def test_mutants_that_change_nothing_but_words_are_told_apart(old: str, new: str, words: bool, strictness: bool):
    assert are_words(old, new) is words
    assert is_strictness(old, new) is strictness
