"""The figures of docs/meters.md are those of results/meters.json, and they hold what the page says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.meters import TOGETHER, filled, tables

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found():
    return json.loads((ROOT / "results/meters.json").read_text(encoding="utf-8"))


def test_the_page_holds_the_results(found):
    page = (ROOT / "docs/meters.md").read_text(encoding="utf-8")
    assert filled(page, found) == page
    assert all(f"<!-- meters: {name} -->" in page for name in tables(found))


def test_a_table_takes_the_place_of_the_one_before(found):
    page = "before\n<!-- meters: cost -->\nold\n<!-- end of table -->\nafter\n"
    assert (
        filled(page, found)
        == f"before\n<!-- meters: cost -->\n\n{tables(found)['cost']}\n\n<!-- end of table -->\nafter\n"
    )


def test_every_row_says_how_it_was_counted(found):
    for row in found["values"]:
        for protocol in ("standard", "invpt"):
            assert f"protocol={protocol!r}" in row[f"{protocol}_is"]


def test_matching_is_exact_and_fast_enough(found):
    assert found["matching"]["graphs_as_large_as_the_largest_flow"] == found["matching"]["graphs"] > 100
    assert all(minutes < 10 for minutes in found["matching"]["minutes_for_654_images"].values())


def test_the_others_cost_less_than_a_tenth_of_the_forward_pass(found):
    for names in TOGETHER:
        assert sum(found["cost"]["share_of_the_forward_pass"][name] for name in names) < 0.1
