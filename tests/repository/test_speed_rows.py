"""The table of ratios: what fails, beyond a limit or worse than committed, and that the file comes back as it was written."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import dtme
from benchmarks import __main__ as command
from benchmarks import analysis, passes
from benchmarks.clock import Middle, Turns, once
from benchmarks.page import speed_page
from benchmarks.rows import Row, beyond, load, regressions, save, table
from benchmarks.sizes import SIZES
from benchmarks.subject import TASKS, Size

ROOT = Path(__file__).parents[2]

SMALL_IS_GOOD = Row("step", "ours / theirs (noise)", Middle(0.9, 1.0, 1.1), at_most=1.1)
LARGE_IS_GOOD = Row("rivals", "theirs / ours", Middle(3.0, 3.0, 3.0), at_least=0)


def changed(row: Row, value: float) -> Row:
    return replace(row, what=row.what.replace("noise", "more noise"), ratio=once(value))


def test_worse_by_more_than_fifteen_per_cent_is_a_regression():
    committed = [SMALL_IS_GOOD, LARGE_IS_GOOD]
    assert regressions([changed(SMALL_IS_GOOD, 1.14), changed(LARGE_IS_GOOD, 2.7)], committed) == []
    assert regressions([changed(SMALL_IS_GOOD, 0.5), changed(LARGE_IS_GOOD, 9.0)], committed) == []
    worse = regressions([changed(SMALL_IS_GOOD, 1.16), changed(LARGE_IS_GOOD, 2.5)], committed)
    assert worse == [
        "step, ours / theirs (more noise): 1.160, committed 1.000",
        "rivals, theirs / ours: 2.500, committed 3.000",
    ]
    assert regressions([changed(SMALL_IS_GOOD, 9.0)], []) == []  # new, so there is nothing to hold it against
    assert regressions([SMALL_IS_GOOD], committed) == ["rivals, theirs / ours: committed 3.000, not measured"]


def test_what_is_not_a_number_is_worse_than_any_committed():
    worse = regressions(
        [changed(SMALL_IS_GOOD, math.nan), changed(LARGE_IS_GOOD, math.nan)], [SMALL_IS_GOOD, LARGE_IS_GOOD]
    )
    assert [line.rpartition(": ")[2] for line in worse] == ["nan, committed 1.000", "nan, committed 3.000"]


def test_a_row_that_is_only_held_against_its_limit_is_no_regression():
    rounding = Row("analysis", "difference", once(1e-8), at_most=0.003, compared=False)
    assert regressions([changed(rounding, 1e-5)], [rounding]) == []
    assert "| 0.0000 |" in table([rounding])
    assert beyond([changed(rounding, 0.0031)]) == ["analysis, difference: 0.0031, wanted ≤ 0.0030"]


@pytest.mark.parametrize(
    ("row", "value", "fails"),
    [
        (SMALL_IS_GOOD, 1.1, False),
        (SMALL_IS_GOOD, 1.11, True),
        (SMALL_IS_GOOD, math.nan, True),
        (LARGE_IS_GOOD, 0.5, False),
        (LARGE_IS_GOOD, math.nan, True),
        (LARGE_IS_GOOD, math.inf, True),
        (Row("processes", "speed-up", once(1.0), at_least=2), 1.99, True),
        (Row("processes", "speed-up", once(1.0), at_least=2), 2.0, False),
        (Row("rivals", "no limit", once(1.0)), 9.0, False),
    ],
)
def test_a_row_fails_beyond_its_own_limit_whatever_was_committed(row: Row, value: float, fails: bool):
    assert bool(beyond([changed(row, value)])) is fails


def test_no_committed_row_is_beyond_its_limit():
    assert beyond(load(ROOT / "results/speed.json")) == []


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A tree with the template of the page, and nothing recorded."""
    for folder in ("results", "docs", "benchmarks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "benchmarks/speed.md.in").write_text("# Speed\n", encoding="utf-8")
    return tmp_path


def written(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.is_file()} - {"speed.md.in"}


def test_without_a_record_limits_alone_are_checked_and_nothing_is_written(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
):
    assert command.judged([SMALL_IS_GOOD], elsewhere, record=False) == 0
    assert "nothing to compare with (--record)" in capsys.readouterr().out
    assert command.judged([changed(SMALL_IS_GOOD, 1.2)], elsewhere, record=False) == 1
    assert "beyond its limit: step, ours / theirs (more noise): 1.20, wanted ≤ 1.10" in capsys.readouterr().out
    assert written(elsewhere) == set()


def test_with_a_record_what_is_worse_fails_though_within_its_limit(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(command, "DEVICE", "cpu")
    assert command.judged([changed(SMALL_IS_GOOD, 0.9)], elsewhere, record=True) == 0
    assert written(elsewhere) == {"speed.json", "speed.md"}
    assert command.judged([SMALL_IS_GOOD], elsewhere, record=False) == 0
    assert command.judged([changed(SMALL_IS_GOOD, 1.05)], elsewhere, record=False) == 1
    assert "worse: step" in capsys.readouterr().out


def test_a_record_of_a_row_beyond_its_limit_is_kept_and_fails(elsewhere: Path):
    assert command.judged([changed(SMALL_IS_GOOD, 1.2)], elsewhere, record=True) == 1
    assert "speed.md" in written(elsewhere)


def test_the_page_is_what_the_results_say():
    assert (ROOT / "docs/speed.md").read_text(encoding="utf-8") == speed_page(ROOT)


@pytest.mark.parametrize("device", SIZES)
def test_every_device_has_models_that_exist_and_the_issues_limit_for_one_task(device: str):
    sizes = SIZES[device]
    timed = [sizes.usual, sizes.literal, *sizes.adapted.values(), sizes.compiled[1]]
    assert all(timm.is_model(size.trunk) for size in timed)
    limits = {size.pixels: limit for size, limit in sizes.one_task.values()}
    assert limits[224] == 1.03  # shorter sequences, of which a task token is more, have one of their own
    assert all("limit of its own" in called for called, (_, limit) in sizes.one_task.items() if limit > 1.03)


TINY = Size("vit_tiny_patch16_224", pixels=32, samples=2, depth=2)


@torch.no_grad()
def test_bare_hooks_do_what_the_library_does():
    base, image = TINY.model().eval(), TINY.batch()["image"]
    applied = dtme.apply(copy.deepcopy(base), passes.published(base))
    for name, parameter in dtme.added_parameters(applied):
        if name.endswith(".tokens"):
            parameter.zero_()  # hooks have a token of zeros
    hooked, task = passes.by_hand(copy.deepcopy(base))(image)[TASKS[0]], TASKS[0]
    with dtme.tasks(applied, task):
        torch.testing.assert_close(applied(image)[task], hooked)
    assert not torch.allclose(hooked, base(image)[task])


def test_the_literal_way_and_the_analysis_give_the_same_rates():
    ratio, difference = analysis.against_the_literal_way(TINY, batches=2, turns=2)
    assert ratio.value > 0
    assert difference <= analysis.SAME_RATES


def test_the_batched_product_is_timed_on_the_device(monkeypatch: pytest.MonkeyPatch):
    given: set[str] = set()

    def noted(inputs: Tensor, outputs: Tensor, down: Tensor, up: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given.update(tensor.device.type for tensor in (inputs, outputs, down, up))
        return outputs

    monkeypatch.setattr(passes, "DEVICE", "meta")
    monkeypatch.setattr(passes, "low_rank_update", noted)
    assert passes.batched_product(TINY, turns=2).value > 0
    assert given == {"meta"}


def test_the_parts_of_an_analysis_take_some_time():
    assert analysis.parts(TINY.model(), [TINY.batch()]) > 0


def test_rows_come_back_from_their_file(tmp_path: Path):
    save(tmp_path / "speed.json", [SMALL_IS_GOOD, LARGE_IS_GOOD])
    assert load(tmp_path / "speed.json") == [SMALL_IS_GOOD, LARGE_IS_GOOD]
    assert table([SMALL_IS_GOOD]).splitlines()[-1].endswith("| 1.00 | 0.90 to 1.10 | ≤ 1.10 |")


def test_ratios_are_taken_within_a_turn():
    turns = Turns([{"a": 2.0, "b": 1.0}, {"a": 20.0, "b": 10.0}, {"a": 6.0, "b": 2.0}])
    assert turns.ratio("a", "b").value == 2.0
    assert turns.of("b") == 2.0
