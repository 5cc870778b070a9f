"""The command that draws early stops again and again, on a few images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_dense import TINY

from experiments.dense.experiment import Bench
from experiments.dense.suite import Suite
from experiments.studies import stopping

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Suite:
    recipe = replace(TINY, images=(8, 48, 4))
    monkeypatch.setattr(stopping, "PLATEAU", recipe)
    monkeypatch.setattr(stopping, "MOMENT_SAMPLES", 8)
    return Bench("scenes", recipe, Path("runs")).load()


def test_what_every_sample_says_adds_up_to_what_all_say(suite: Suite):
    model = stopping.trained(suite, steps=10)
    rows = torch.arange(len(suite.train))
    spaces = {
        name: stopping.token_space(moment, 100.0) for name, moment in stopping.moments(model, suite.train, rows).items()
    }
    ((like, found),) = stopping.conflicts(model, suite, [spaces], lambda line: None)
    like.add(found)
    like.count(found.samples, found.counts)
    whole = like.report(dict.fromkeys(like.blocks, TINY.width), 100.0)
    report, settled = stopping.drawn(model, like, found, rows.flip(0))
    assert not settled  # so few samples tell nothing
    assert report.samples == whole.samples == len(suite.train)
    torch.testing.assert_close(report.range_rate, whole.range_rate)
    torch.testing.assert_close(report.gradient_size, whole.gradient_size)
    assert stopping.within(report, whole, 0.0)


def test_its_figures_are_those_of_the_draws(suite: Suite):
    found = stopping.measure(suite, steps=10, draws=2, spaces=1, report=lambda line: None)
    assert found["samples_median"] == found["samples_of_one_analysis"] == found["training_samples"] == len(suite.train)
    assert found["settled"] == 0
    assert found["tolerance"] == stopping.TIE
    assert len(found["range_score"]) == TINY.depth
