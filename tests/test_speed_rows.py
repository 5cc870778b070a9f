"""The table of ratios: what counts as worse than the committed figures, and that the file comes back as it was written."""

from __future__ import annotations

from pathlib import Path

from benchmarks.clock import Middle, Turns
from benchmarks.page import speed_page
from benchmarks.rows import Row, load, regressions, save, table

SMALL_IS_GOOD = Row("step", "ours / theirs (noise)", Middle(0.9, 1.0, 1.1), at_most=1.1)
LARGE_IS_GOOD = Row("rivals", "theirs / ours", Middle(3.0, 3.0, 3.0), at_least=0)


def changed(row: Row, value: float) -> Row:
    return Row(
        row.group, row.what.replace("noise", "more noise"), Middle(value, value, value), row.at_most, row.at_least
    )


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


def test_the_page_is_what_the_results_say():
    root = Path(__file__).parents[1]
    assert (root / "docs/speed.md").read_text(encoding="utf-8") == speed_page(root)


def test_rows_come_back_from_their_file(tmp_path: Path):
    save(tmp_path / "speed.json", [SMALL_IS_GOOD, LARGE_IS_GOOD])
    assert load(tmp_path / "speed.json") == [SMALL_IS_GOOD, LARGE_IS_GOOD]
    assert table([SMALL_IS_GOOD]).splitlines()[-1].endswith("| 1.00 | 0.90 to 1.10 | ≤ 1.10 |")


def test_ratios_are_taken_within_a_turn():
    turns = Turns([{"a": 2.0, "b": 1.0}, {"a": 20.0, "b": 10.0}, {"a": 6.0, "b": 2.0}])
    assert turns.ratio("a", "b").value == 2.0
    assert turns.of("b") == 2.0
