import math

import pytest
import torch

from experiments.dense.losses import (
    balanced_edge_loss,
    depth_loss,
    mask_loss,
    normals_loss,
    regression_loss,
    segmentation_loss,
)


def test_segmentation_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [9.0, 9.0]]).T.reshape(1, 2, 1, 3)
    target = torch.tensor([[[0, 0, 255]]], dtype=torch.uint8)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert segmentation_loss(logits, target).item() == pytest.approx(expected)


def test_depth_by_hand_skips_unknown_pixels():
    prediction = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).reshape(1, 1, 1, 5)
    target = torch.tensor([[[1.5, 0.0, math.inf, math.nan, 3.0]]], dtype=torch.float16)
    assert depth_loss(prediction, target).item() == pytest.approx((0.5 + 2.0) / 2)


def test_normals_by_hand():
    prediction = torch.tensor([[3.0, 0.0, 4.0], [1.0, 1.0, 1.0]]).T.reshape(1, 3, 1, 2)
    target = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]).T.reshape(1, 3, 1, 2).half()
    assert normals_loss(prediction, target).item() == pytest.approx((0.6 + 0.0 + 0.2) / 3)


def test_edges_by_hand():
    prediction = torch.tensor([1.0, -2.0, 0.5, 7.0]).reshape(1, 1, 1, 4)
    target = torch.tensor([[[1, 0, 0, 255]]], dtype=torch.uint8)
    softplus = [math.log(1 + math.exp(x)) for x in (-1.0, -2.0, 0.5)]
    expected = (0.95 * softplus[0] + 0.05 * (softplus[1] + softplus[2])) / 3
    assert balanced_edge_loss(prediction, target).item() == pytest.approx(expected)


def test_mask_by_hand():
    prediction = torch.tensor([1.0, -2.0, 7.0]).reshape(1, 1, 1, 3)
    target = torch.tensor([[[1, 1, 255]]], dtype=torch.uint8)
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert mask_loss(prediction, target).item() == pytest.approx(expected)


def test_regression_by_hand():
    prediction = torch.tensor([0.5, -1.0]).reshape(1, 1, 1, 2)
    assert regression_loss(prediction, torch.tensor([[[-0.5, 0.0]]]).half()).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("loss", "channels", "target"),
    [
        (segmentation_loss, 5, torch.full((2, 3, 3), 255, dtype=torch.uint8)),
        (depth_loss, 1, torch.zeros(2, 3, 3).half()),
        (normals_loss, 3, torch.zeros(2, 3, 3, 3).half()),
        (balanced_edge_loss, 1, torch.full((2, 3, 3), 255, dtype=torch.uint8)),
        (mask_loss, 1, torch.full((2, 3, 3), 255, dtype=torch.uint8)),
    ],
)
def test_nothing_valid_gives_zero_with_a_zero_gradient(loss, channels, target):
    prediction = torch.randn(2, channels, 3, 3, requires_grad=True)
    value = loss(prediction, target)
    value.backward()
    assert value.item() == 0
    assert prediction.grad is not None
    assert prediction.grad.eq(0).all()


@pytest.mark.parametrize("loss", [depth_loss, balanced_edge_loss, mask_loss, regression_loss])
def test_a_target_may_keep_its_channel_but_nothing_is_broadcast(loss):
    prediction, target = torch.randn(2, 1, 3, 4), torch.ones(2, 3, 4)
    assert loss(prediction, target) == loss(prediction, target[:, None])
    with pytest.raises(ValueError, match=r"\(2, 1, 3, 4\).*\(3, 3, 4\)"):
        loss(prediction, torch.ones(3, 3, 4))


def test_unknown_depth_leaves_the_gradient_finite():
    prediction = torch.ones(1, 1, 1, 2, requires_grad=True)
    depth_loss(prediction, torch.tensor([[[math.inf, 2.0]]])).backward()
    assert prediction.grad is not None
    assert prediction.grad.flatten().tolist() == [0, -1]


def test_half_precision_predictions_are_summed_in_float32():
    assert regression_loss(torch.zeros(1, 1, 8, 8).half(), torch.ones(1, 8, 8)).dtype is torch.float32
