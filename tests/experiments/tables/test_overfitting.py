"""How far apart losses on images trained on and on others end, by numbers that can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.tables.overfitting import gap, looks_as_curves, overfitting_table


def row(method: str, *looks: tuple[float, float], factor: float = 1.0) -> dict[str, Any]:
    """A row of two tasks; of each look the losses of task a on images trained on and on others; task b's are `factor` as high."""
    return {
        "method": method,
        "looks": [
            {"step": 10 * number, "split": split, "losses": {"a": loss, "b": factor * loss}}
            for number, pair in enumerate(looks, 1)
            for split, loss in zip(("train", "test"), pair, strict=True)
        ],
    }


RUNS = [
    {"seed": 0, "rows": [row("MT", (2.0, 2.0), (1.0, 2.0)), row("TE", (2.0, 2.0), (1.0, 1.5), factor=3.0)]},
    {"seed": 1, "rows": [row("MT", (2.0, 2.0), (1.0, 1.8)), row("TE", (2.0, 2.0), (1.0, 1.3), factor=3.0)]},
]


def test_a_gap_is_the_mean_over_tasks_whatever_their_scales():
    assert gap(row("MT", (1.0, 2.0))) == pytest.approx(100)
    assert gap(row("MT", (1.0, 2.0), factor=1000.0)) == pytest.approx(100)
    mixed = row("MT", (1.0, 4.0))
    mixed["looks"][1]["losses"]["b"] = 1.0
    assert gap(mixed) == pytest.approx(100)  # the geometric mean of 4 and 1 is 2
    assert gap(row("MT", (1.0, 2.0), (1.0, 1.0))) == pytest.approx(0)
    assert gap(row("MT", (1.0, 2.0), (1.0, 1.0)), at=0) == pytest.approx(100)


def test_the_table_holds_losses_and_gaps_against_plain_training():
    head, _, plain, own = overfitting_table(RUNS, ["MT", "TE"]).splitlines()
    assert head.count("|") == plain.count("|") == own.count("|")
    assert plain == "| MT | 0 | 0 | 90.0 % | 0 | - |"
    # train losses: a as high, b three times; test: the same times the root of 1.5 / 2 * 1.3 / 1.8
    assert own.startswith("| TE | +73.2 % | +27.5 % | 40.0 % | -50.00 ± ")


def test_a_row_that_was_not_looked_at_is_named():
    with pytest.raises(ValueError, match="'TM' or 'MT' was not measured on the way"):
        overfitting_table(RUNS, ["TM"])


def test_curves_are_means_over_seeds_of_either_split():
    curves = looks_as_curves(RUNS, ["MT"])
    assert curves.keys() == {"MT, trained on", "MT, new images"}
    assert curves["MT, trained on"]["a"] == [[10, 2.0], [20, 1.0]]
    assert curves["MT, new images"]["b"] == [[10, 2.0], [20, pytest.approx(1.9)]]
