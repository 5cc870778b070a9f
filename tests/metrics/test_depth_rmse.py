from __future__ import annotations

import math

import pytest
import torch

from dtme.metrics import DepthRMSE


def test_hand_computed_over_the_whole_set():
    metric = DepthRMSE()
    metric.update(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[2.0, 4.0]]]))
    metric.update(torch.tensor([[[5.0]]]), torch.tensor([[[5.0]]]))
    # The mean of the batches' errors would be sqrt(5 / 2) / 2.
    assert metric.compute().item() == pytest.approx(math.sqrt((1 + 4 + 0) / 3))


@pytest.mark.parametrize("invalid", [0.0, -1.0, math.nan, math.inf])
def test_invalid_pixels_do_not_count(invalid):
    metric = DepthRMSE()
    metric.update(torch.tensor([[[3.0, 100.0]]]), torch.tensor([[[1.0, invalid]]]))
    assert metric.compute().item() == pytest.approx(2)


def test_invpt_takes_negative_predictions_for_0_and_distant_pixels_for_unknown():
    pair = torch.tensor([[[-3.0, 5.0, 9.0, 9.0]]]), torch.tensor([[[1.0, 5.0, 80.0, 255.0]]])
    standard, published = DepthRMSE(), DepthRMSE(protocol="invpt")
    for metric in (standard, published):
        metric.update(*pair)
    assert standard.compute().item() == pytest.approx(math.sqrt((4**2 + 0 + 71**2 + 246**2) / 4))
    assert published.compute().item() == pytest.approx(math.sqrt((1 + 0) / 2))


def test_half_precision_is_summed_in_double():
    metric = DepthRMSE()
    target = torch.full((1, 300, 300), 200.0, dtype=torch.float16)
    metric.update(torch.full((1, 1, 300, 300), 500.0, dtype=torch.float16), target)  # 300^2 overflows float16
    assert metric.compute().item() == pytest.approx(300)


def test_forward_gives_the_batch_and_keeps_the_sum():
    metric = DepthRMSE()
    assert metric(torch.tensor([[[2.0]]]), torch.tensor([[[1.0]]])).item() == 1
    assert metric(torch.tensor([[[8.0]]]), torch.tensor([[[1.0]]])).item() == 7
    assert metric.compute().item() == pytest.approx(5)
    metric.reset()
    metric.update(torch.tensor([[[1.0]]]), torch.tensor([[[1.0]]]))
    assert metric.compute().item() == 0


def test_no_valid_pixel_is_nan():
    metric = DepthRMSE()
    metric.update(torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2))
    assert metric.compute().isnan()


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.ones(1, 2, 4, 4), torch.ones(1, 4, 4), r"prediction .*\(1, 4, 4\).*\(1, 2, 4, 4\)"),
        (torch.ones(2, 1, 4, 4), torch.ones(1, 4, 4), r"prediction .*\(2, 1, 4, 4\)"),
        (torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4), r"target .*\(1, 1, 4, 4\)"),
        (torch.ones(1, 4, 4, dtype=torch.int64), torch.ones(1, 4, 4), r"prediction .*int64"),
        (torch.full((1, 1, 1, 1), torch.nan), torch.ones(1, 1, 1), r"prediction has 1 NaN.*diverged"),
        (torch.full((1, 1, 1, 1), torch.inf), torch.ones(1, 1, 1), r"prediction has 1 infinite.*float16"),
        (torch.tensor([[[torch.inf, -torch.inf]]]), torch.ones(1, 1, 2), "prediction has 2 infinite"),
    ],
)
def test_refuses(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        DepthRMSE().update(prediction, target)


def test_lower_is_better():
    assert DepthRMSE().higher_is_better is False
