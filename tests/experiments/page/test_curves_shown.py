from __future__ import annotations

from experiments.page.curves_shown import drawn_methods

GAINS = {"ST": 0.0, "MT": -2.0, "MT 2x": -1.5, "TM": -1.7, "TM+TE": -1.9, "PCGrad": -1.1, "UW": -1.2}


def results_of(gains):
    return {"rows": [{"method": method, "delta_m": gain} for method, gain in gains.items()]}


def test_the_headline_and_what_it_is_held_against_come_before_those_that_gain_more():
    assert drawn_methods(results_of(GAINS), GAINS, most=3) == ["ST", "MT", "TM+TE"]
    assert drawn_methods(results_of(GAINS), GAINS, most=5) == ["ST", "MT", "TM+TE", "PCGrad", "UW"]
    assert drawn_methods(results_of(GAINS), GAINS, most=9) == list(GAINS)


def test_only_what_could_be_drawn_is():
    assert drawn_methods(results_of(GAINS), ["MT", "TM+TE", "UW"], most=2) == ["MT", "TM+TE"]
    assert drawn_methods(results_of(GAINS), ["MT 2x", "UW"], most=1) == ["UW"]


def test_without_a_headline_those_that_gain_most_are_drawn():
    gains = {"ST": 0.0, "MT": -2.0, "MT 2x": -1.5, "PCGrad": -1.1}
    assert drawn_methods(results_of(gains), gains, most=3) == ["ST", "MT", "PCGrad"]


def test_what_has_no_gain_comes_last():
    gains = {"MT": -2.0, "MT 2x": None, "PCGrad": -9.0}
    assert drawn_methods(results_of(gains), [*gains, "without a row"], most=2) == ["MT", "PCGrad"]
