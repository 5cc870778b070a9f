from __future__ import annotations

import math

import pytest
import torch

from dtme.metrics import RMSE, L1Error

nan, inf = math.nan, math.inf


def row(*values):
    """One image whose pixels stand in a row."""
    return torch.tensor(values).view(1, 1, -1)


def error(metric, *batches):
    for prediction, target in batches:
        metric.update(prediction, target)
    return metric.compute().item()


BATCHES = (row(1.0, 5.0, 9.0), row(1.0, 2.0, nan)), (row(0.0), row(-4.0))
"""Errors 0 and 3, and in the second batch 4."""


def test_hand_computed_over_the_whole_set():
    assert error(L1Error(), *BATCHES) == pytest.approx((0 + 3 + 4) / 3)
    assert error(RMSE(), *BATCHES) == pytest.approx(math.sqrt((0 + 9 + 16) / 3))
    assert error(RMSE(root=False), *BATCHES) == pytest.approx((0 + 9 + 16) / 3)


def test_invpt_is_a_mean_of_batches():
    assert error(L1Error(protocol="invpt"), *BATCHES) == pytest.approx((1.5 + 4) / 2)
    assert error(RMSE(protocol="invpt"), *BATCHES) == pytest.approx(math.sqrt((4.5 + 16) / 2))
    assert error(RMSE(root=False, protocol="invpt"), *BATCHES) == pytest.approx((4.5 + 16) / 2)


@pytest.mark.parametrize("kind", [L1Error, RMSE])
def test_a_batch_without_a_known_value_does_not_count(kind):
    for protocol in ("standard", "invpt"):
        unknown = row(1.0, 2.0), row(nan, inf)
        assert error(kind(protocol=protocol), *BATCHES, unknown) == error(kind(protocol=protocol), *BATCHES)
        assert math.isnan(error(kind(protocol=protocol), unknown))


def test_all_channels_count():
    prediction = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 1, 2)
    target = torch.tensor([1.0, nan, 5.0, 8.0]).view(1, 2, 1, 2)
    assert error(L1Error(), (prediction, target)) == pytest.approx((0 + 2 + 4) / 3)
    assert error(RMSE(), (prediction, target)) == pytest.approx(math.sqrt((0 + 4 + 16) / 3))


@pytest.mark.parametrize("kind", [L1Error, RMSE])
def test_a_channel_more_or_less(kind):
    prediction, target = BATCHES[0]
    assert error(kind(), (prediction[:, None], target)) == error(kind(), (prediction, target))
    assert error(kind(), (prediction[:, None], target[:, None])) == error(kind(), (prediction, target))


def test_half_precision_is_summed_in_double():
    target = torch.full((1, 300, 300), 200.0, dtype=torch.float16)
    prediction = torch.full((1, 1, 300, 300), 500.0, dtype=torch.float16)  # 300^2 overflows float16
    assert error(RMSE(), (prediction, target)) == pytest.approx(300)
    assert error(L1Error(), (prediction, target)) == pytest.approx(300)


@pytest.mark.parametrize("kind", [L1Error, RMSE])
@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.ones(1, 2, 4, 4), torch.ones(1, 4, 4), r"prediction .*\(1, 4, 4\).*\(1, 2, 4, 4\)"),
        (torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4), r"prediction .*\(1, 3, 4, 4\).*\(1, 2, 4, 4\)"),
        (torch.ones(4, 4), torch.ones(4, 4), r"target .*\(4, 4\)"),
        (torch.ones(1, 4, 4, dtype=torch.int64), torch.ones(1, 4, 4), "prediction .*int64"),
        (torch.ones(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.uint8), "target .*uint8"),
        (row(nan), row(1.0), "prediction has 1 NaN.*diverged"),
        (row(inf, -inf), row(nan, 1.0), "prediction has 2 infinite.*float16"),
    ],
)
def test_refuses(kind, prediction, target, message):
    with pytest.raises(ValueError, match=message):
        kind().update(prediction, target)


@pytest.mark.parametrize("kind", [L1Error, RMSE])
def test_lower_is_better(kind):
    assert kind().higher_is_better is False
