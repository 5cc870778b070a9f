"""The field's losses against sums written out by hand, and their behaviour where nothing is known."""

from __future__ import annotations

import math

import pytest
import torch

from experiments.dense.invpt import losses

LN = math.log


def logits(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(1, 1, 1, -1)


def test_classes():
    prediction = torch.tensor([[[[0.0, 2.0, 9.0]], [[1.0, 0.0, -9.0]]]])
    target = torch.tensor([[[1, 0, 255]]], dtype=torch.uint8)
    expected = (LN(1 + math.exp(-1)) + LN(1 + math.exp(-2))) / 2
    assert losses.class_loss(prediction, target).item() == pytest.approx(expected)


def test_saliency_is_balanced_over_the_batch_and_divided_by_pixels():
    prediction = torch.tensor([[[[2.0, -1.0]]], [[[0.5, 7.0]]]])
    target = torch.tensor([[[1, 0]], [[0, 255]]], dtype=torch.uint8)
    # of 3 known pixels 1 is salient: it weighs 2/3, the others 1/3
    expected = (2 / 3 * LN(1 + math.exp(-2)) + 1 / 3 * LN(1 + math.exp(-1)) + 1 / 3 * LN(1 + math.exp(0.5))) / 3
    assert losses.saliency_loss(prediction, target).item() == pytest.approx(expected)


def test_saliency_is_the_weighted_cross_entropy_of_two_channels():
    two = torch.randn(2, 2, 5, 6)
    target = torch.randint(0, 2, (2, 5, 6))
    share = target.float().mean()
    whole = torch.nn.functional.cross_entropy(two, target, weight=torch.stack([share, 1 - share]), reduction="sum") / 60
    one = losses.saliency_loss(two[:, 1:] - two[:, :1], target)
    torch.testing.assert_close(one, whole)


@pytest.mark.parametrize("weight", [0.95, 0.8])
def test_edges_weigh_so_much(weight):
    target = torch.tensor([[[1, 0, 255, 0]]], dtype=torch.uint8)
    expected = (weight * LN(1 + math.exp(1)) + (1 - weight) * (LN(2) + LN(1 + math.exp(2)))) / 3
    assert losses.edge_loss(logits(-1, 0, 5, 2), target, weight).item() == pytest.approx(expected)


def test_edges_are_as_with_a_positive_weight_of_19_over_20():
    prediction, target = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 4, 4))
    of_torch = torch.nn.functional.binary_cross_entropy_with_logits(
        prediction[:, 0], target.float(), pos_weight=torch.tensor(19.0)
    )
    torch.testing.assert_close(losses.edge_loss(prediction, target), of_torch / 20)


def test_normals_are_divided_by_pixels_or_by_three_times_as_much():
    target = torch.zeros(1, 3, 1, 3)
    target[0, :, 0, 0] = torch.tensor([0.0, 0.0, 0.5])  # not of unit length, and not made so
    target[0, :, 0, 1] = torch.tensor([1.0, 0.0, 0.0])
    prediction = torch.zeros(1, 3, 1, 3)
    prediction[0, :, 0, 0] = torch.tensor([0.0, 0.0, 8.0])
    prediction[0, :, 0, 1] = torch.tensor([3.0, 4.0, 0.0])
    prediction[0, :, 0, 2] = torch.tensor([5.0, 5.0, 5.0])
    expected = (0.5 + 0.4 + 0.8) / 2
    assert losses.normals_loss(prediction, target).item() == pytest.approx(expected)
    assert losses.normals_loss(prediction, target, over="elements").item() == pytest.approx(expected / 3)


def test_weights():
    tasks = ("semseg", "parts", "saliency", "depth", "normals", "edges")
    assert [losses.weight_of(task, "invpt") for task in tasks] == [1, 2, 5, 1, 10, 50]
    assert {losses.weight_of(task, "ones") for task in tasks} == {1.0}


@pytest.mark.parametrize(
    ("loss", "channels", "target"),
    [
        (losses.class_loss, 4, torch.full((2, 3, 3), 255, dtype=torch.uint8)),
        (losses.saliency_loss, 1, torch.full((2, 3, 3), 255, dtype=torch.uint8)),
        (losses.edge_loss, 1, torch.full((2, 3, 3), 255, dtype=torch.uint8)),
        (losses.normals_loss, 3, torch.zeros(2, 3, 3, 3)),
        (losses.depth_loss, 1, torch.zeros(2, 3, 3)),
    ],
)
def test_where_nothing_is_known_loss_and_gradient_are_zero(loss, channels, target):
    prediction = torch.randn(2, channels, 3, 3, requires_grad=True)
    value = loss(prediction, target)
    value.backward()
    assert value.item() == 0
    assert prediction.grad is not None
    assert not prediction.grad.any()


def test_unknown_pixels_have_no_gradient():
    prediction = torch.randn(1, 1, 1, 4, requires_grad=True)
    losses.depth_loss(prediction, torch.tensor([[[1.0, 0.0, 2.0, 0.0]]])).backward()
    assert (prediction.grad.flatten() != 0).tolist() == [True, False, True, False]


def test_half_precision_is_computed_in_single():
    prediction = torch.full((1, 1, 300, 300), 40000.0, dtype=torch.float16)
    assert losses.depth_loss(prediction, torch.ones(1, 300, 300)).item() == pytest.approx(39999, abs=0.1)
