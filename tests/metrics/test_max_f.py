from __future__ import annotations

import math

import pytest
import torch

from dtme.metrics import MaxF


def logits(*probabilities):
    return torch.logit(torch.tensor(probabilities, dtype=torch.float64)).view(1, 1, 1, -1)


def labels(*values):
    return torch.tensor(values, dtype=torch.uint8).view(1, 1, -1)


def score(*batches, **options):
    metric = MaxF(**options)
    for prediction, target in batches:
        metric.update(prediction, target)
    return metric.compute().item()


def f(precision, recall):
    return 100 * 1.3 * precision * recall / (0.3 * precision + recall)


def test_hand_computed_at_each_threshold():
    pair = logits(0.9, 0.7, 0.6, 0.4, 0.1), labels(1, 0, 1, 1, 0)
    at = {0.8: f(1, 1 / 3), 0.65: f(1 / 2, 1 / 3), 0.5: f(2 / 3, 2 / 3), 0.3: f(3 / 4, 1), 0.05: f(3 / 5, 1)}
    for threshold, expected in at.items():
        assert score(pair, thresholds=[threshold]) == pytest.approx(expected)
    assert score(pair, thresholds=sorted(at)) == pytest.approx(max(at.values()))
    assert score(pair) == pytest.approx(max(at.values()))


def test_counts_are_summed_before_the_ratio():
    easy = logits(0.9, 0.9, 0.9), labels(1, 1, 1)
    hard = logits(0.9, 0.9), labels(1, 0)
    assert score(easy, hard, thresholds=[0.5]) == pytest.approx(f(4 / 5, 1))


def test_a_probability_on_the_threshold_reaches_it():
    assert score((torch.zeros(1, 1, 1, 1), labels(1)), thresholds=[0.5]) == 100


def test_second_sigmoid_of_the_invpt_protocol():
    """Through a second sigmoid even 0.01 lies above 0.5, and no probability reaches 0.75."""
    pair = logits(0.99, 0.01), labels(1, 0)
    assert score(pair, thresholds=[0.5]) == 100
    assert score(pair, thresholds=[0.5], protocol="invpt") == pytest.approx(f(1 / 2, 1))
    assert score(pair, thresholds=[0.75]) == 100
    assert score(pair, thresholds=[0.75], protocol="invpt") == 0
    assert score(pair, thresholds=[0.6], protocol="invpt") == 100


def test_defaults_of_both_protocols():
    assert MaxF().thresholds == tuple(k / 255 for k in range(256))
    assert MaxF(protocol="invpt").thresholds == pytest.approx([0.05 * k for k in range(1, 20)])


def test_invpt_has_four_levels_within_reach():
    """Whatever lies between two of them counts alike: below 0.2007 salient and other pixels are not told apart."""
    for low, high, told in ((0.1, 0.2, False), (0.19, 0.21, True), (0.21, 0.4, False), (0.4, 0.41, True)):
        value = score((logits(low, high), labels(0, 1)), protocol="invpt")
        assert value == pytest.approx(100 if told else f(1 / 2, 1))
        assert score((logits(low, high), labels(0, 1))) == pytest.approx(100)
    for low, high, told in ((0.61, 0.62, True), (0.62, 0.84, False), (0.84, 0.85, True), (0.85, 0.99, False)):
        value = score((logits(low, high), labels(0, 1)), protocol="invpt")
        assert value == pytest.approx(100 if told else f(1 / 2, 1))


def test_ignored_pixels_do_not_count():
    assert score((logits(0.9, 0.1, 0.9), labels(1, 0, 255))) == 100


def test_half_precision_and_squeezed_predictions():
    pair = logits(0.9, 0.2, 0.8), labels(1, 0, 1)
    half = pair[0].squeeze(1).half(), pair[1].half()
    assert score(pair) == score(half) == 100


def test_empty_prediction_empty_truth_and_nothing_at_all():
    assert score((logits(0.1), labels(1)), thresholds=[0.5]) == 0
    assert score((logits(0.9), labels(0)), thresholds=[0.5]) == 0
    assert math.isnan(score((logits(0.9), labels(255))))


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4), r"prediction .*\(1, 4, 4\).*\(1, 2, 4, 4\)"),
        (torch.zeros(1, 4, 4), torch.full((1, 4, 4), 7), r"target must hold 0, 1 .*7"),
        (torch.full((1, 4, 4), torch.nan), torch.zeros(1, 4, 4), r"prediction has 16 NaN.*diverged"),
    ],
)
def test_refuses(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        MaxF().update(prediction, target)


@pytest.mark.parametrize(
    ("options", "message"), [({"protocol": "other"}, "protocol"), ({"thresholds": []}, "thresholds")]
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        MaxF(**options)


def test_higher_is_better():
    assert MaxF().higher_is_better is True
