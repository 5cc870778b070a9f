from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dtme.metrics import OptimalDatasetF
from dtme.metrics.edges.thinning import thin


def line(row, first=10, last=50, size=64):
    """An image with a horizontal line of 40 pixels."""
    image = torch.zeros(1, size, size)
    image[:, row, first:last] = 1
    return image


def logits(probability):
    return torch.logit(probability, eps=1e-6)


def score(prediction, target, **options):
    metric = OptimalDatasetF(**options)
    metric.update(prediction, target)
    return metric.compute().item()


nothing = torch.zeros(1, 64, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool, torch.uint8])
def test_perfect(dtype):
    assert score(logits(line(20)), line(20).to(dtype)) == 100
    assert score(logits(line(20))[:, None].half(), line(20).to(dtype)) == 100


def test_shifts_within_and_beyond_the_tolerance():
    assert score(logits(line(21)), line(20)) == 100  # 1 pixel of 1.5
    assert score(logits(line(22)), line(20)) == 0  # 2 pixels of 1.5
    assert score(logits(line(22)), line(20), min_distance=2.0) == 100
    assert score(logits(line(22)), line(20), tolerance=0.0222) == 100  # 2.01 pixels of a diagonal of 90.5
    assert score(logits(line(22)), line(20), tolerance=0.0220) == 0  # 1.99 pixels
    assert score(logits(line(21)), line(20), tolerance=0.0, min_distance=0.0) == 0


def test_a_thick_line_matches_once():
    """Two lines side by side have twice the pixels of the truth, but each true pixel only one match."""
    doubled = line(19).clone()
    doubled[:, 21, 10:50] = 1  # not adjacent, so that thinning keeps both
    assert score(logits(doubled), line(20)) == pytest.approx(100 * 2 * 40 / (80 + 40))
    assert score(logits(line(20)), doubled) == pytest.approx(100 * 2 * 40 / (80 + 40))


def test_thick_predictions_and_thick_labels_are_thinned():
    thick = line(19) + line(20) + line(21)
    assert score(logits(thick), thick) == 100
    ends = 40 - int(thin(thick[0].numpy() > 0).sum())  # thinning takes a pixel or two from the ends of a bar
    assert 0 < ends <= 3
    assert score(logits(thick), line(20)) == pytest.approx(100 * 2 * (40 - ends) / (80 - ends))


def test_half_of_it():
    assert score(logits(line(20, last=30)), line(20)) == pytest.approx(100 * 2 * 20 / (20 + 40))  # P = 1, R = 1/2
    assert score(logits(line(20)), line(20, last=30)) == pytest.approx(100 * 2 * 20 / (20 + 40))  # P = 1/2, R = 1


def test_greedy_matching_would_be_wrong():
    """Shifted along itself, nearest first: all common pixels pair up and the two ends stay alone, 39 of 40."""
    assert score(logits(line(20, 11, 51)), line(20), min_distance=1.0) == 100


def test_empty_prediction_and_empty_truth():
    assert score(logits(nothing), line(20)) == 0
    assert score(logits(line(20)), nothing) == 0
    assert math.isnan(score(logits(nothing), nothing))


def test_false_alarms_on_an_empty_image_count():
    metric = OptimalDatasetF()
    metric.update(logits(line(20)), line(20))
    metric.update(logits(line(20)), nothing)
    assert metric.compute().item() == pytest.approx(100 * 2 * 40 / (80 + 40))


def test_sweep_finds_the_right_threshold():
    """True edge at 0.6, false alarms at 0.3 and a sure half at 0.9: only thresholds between 0.3 and 0.6 are right."""
    probability = 0.6 * line(20)
    probability[:, 20, 10:30] = 0.9
    probability = probability + 0.3 * line(40)
    right = 100.0
    too_low, too_high = 100 * 2 * 40 / (80 + 40), 100 * 2 * 20 / (20 + 40)
    assert score(logits(probability), line(20), thresholds=[0.2]) == pytest.approx(too_low)
    assert score(logits(probability), line(20), thresholds=[0.7]) == pytest.approx(too_high)
    assert score(logits(probability), line(20), thresholds=[0.2, 0.5, 0.7]) == right
    assert score(logits(probability), line(20)) == right


def test_one_threshold_for_the_whole_set():
    """Each image alone has a perfect threshold, 0.5 and 0.15, but no threshold is perfect for both."""
    first = logits(0.6 * line(20) + 0.3 * line(40))
    second = logits(0.2 * line(20))
    assert score(first, line(20)) == score(second, line(20)) == 100
    together = OptimalDatasetF()
    together.update(first, line(20))
    together.update(second, line(20))
    assert together.compute().item() == pytest.approx(max(100 * 2 * 80 / (120 + 80), 100 * 2 * 40 / (40 + 80)))


def test_many_thresholds_and_batches_change_nothing():
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(5, 32, 32, generator=generator) > 0.9).float()
    prediction = 4 * truth - 2 + torch.randn(5, 32, 32, generator=generator)
    thresholds = [k / 100 for k in range(1, 100)]  # more than one word of bits
    alone = max(score(prediction, truth, thresholds=[t]) for t in thresholds[::11])
    whole = score(prediction, truth, thresholds=thresholds[::11])
    assert whole == alone
    metric = OptimalDatasetF(thresholds=thresholds)
    for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
        metric.update(prediction[rows], truth[rows])
    assert metric.compute().item() == score(prediction, truth, thresholds=thresholds) >= whole


def test_large_batches_are_worth_the_sum_of_their_images():
    generator = torch.Generator().manual_seed(4)
    truth = (torch.rand(20, 64, 64, generator=generator) > 0.9).float()  # more images than are taken at once
    prediction = 4 * truth - 2 + torch.randn(20, 64, 64, generator=generator)
    metric = OptimalDatasetF(thresholds=[0.3, 0.6])
    for row in range(20):
        metric.update(prediction[row, None], truth[row, None])
    assert score(prediction, truth, thresholds=[0.3, 0.6]) == metric.compute().item()


def test_equals_a_literal_computation():
    """Random maps against an assignment of all pixels to all pixels, image by image and threshold by threshold."""
    generator = torch.Generator().manual_seed(3)
    truth = (torch.rand(3, 24, 18, generator=generator) > 0.85).int()
    prediction = torch.randn(3, 24, 18, generator=generator) + truth
    best, thresholds = 0.0, (0.3, 0.5, 0.7)
    for threshold in thresholds:
        matched = predicted = true = 0
        for image, labels in zip(prediction.sigmoid() >= threshold, truth, strict=True):
            one, other = (np.argwhere(thin(x.bool().numpy())) for x in (image, labels))
            far = np.linalg.norm(one[:, None] - other[None], axis=-1) > 2
            matched += int((~far[linear_sum_assignment(far.astype(float))]).sum())
            predicted, true = predicted + len(one), true + len(other)
        precision, recall = matched / predicted, matched / true
        best = max(best, 100 * 2 * precision * recall / (precision + recall))
    assert score(prediction, truth, thresholds=thresholds, min_distance=2.0) == pytest.approx(best)


def test_ignored_pixels_are_neither_true_nor_predicted():
    target = line(20).to(torch.uint8)
    target[:, 30:] = 255
    assert score(logits(line(20) + line(40)), target) == 100


def test_padding_changes_nothing():
    """Neither the diagonal, of which the tolerance is a part, nor the border towards which edges are weakened."""
    generator = torch.Generator().manual_seed(5)
    target = (torch.rand(2, 40, 30, generator=generator) > 0.9).to(torch.uint8)
    prediction = 3 * target.float() - 2 + torch.randn(2, 40, 30, generator=generator)
    frame = (7, 11, 5, 9)
    padded = torch.nn.functional.pad(target, frame, value=255)
    for protocol in ("standard", "invpt"):
        options = {"tolerance": 0.05, "protocol": protocol}
        value = score(prediction, target, **options)
        assert score(torch.nn.functional.pad(prediction, frame, value=9.0), padded, **options) == value
        assert 0 < value < 100


def test_images_of_a_batch_have_padding_of_their_own():
    target = torch.full((2, 64, 64), 255, dtype=torch.uint8)
    target[0, :30, :40], target[1] = 0, 0  # diagonals of 50 and 90.5
    target[:, 10, 5:35] = 1
    shifted = logits((target == 1).float().roll(2, dims=1))
    options = {"min_distance": 0.0, "thresholds": [0.5]}
    assert score(shifted, target, tolerance=0.039, **options) == pytest.approx(50)  # 1.95 and 3.5 pixels
    assert score(shifted, target, tolerance=0.041, **options) == 100  # 2.05 pixels


def test_an_image_that_is_ignored_whole_counts_nothing():
    target = torch.stack([line(20)[0], torch.full((64, 64), 255.0)])
    assert score(logits(torch.cat([line(20), line(40)])), target) == 100


def test_threads_change_nothing():
    generator = torch.Generator().manual_seed(6)
    truth = (torch.rand(5, 24, 24, generator=generator) > 0.9).float()
    prediction = 3 * truth - 2 + torch.randn(5, 24, 24, generator=generator)
    alone = score(prediction, truth)
    torch.set_num_threads(3)
    try:
        assert score(prediction, truth) == alone
    finally:
        torch.set_num_threads(1)


def test_suppression_makes_a_line_of_a_wide_ramp():
    """At a low threshold, what is left of a wide hill is a blob, which thinning makes a line of somewhere in it."""
    rows = torch.arange(64.0)[:, None].expand(64, 64)
    hill = torch.exp(-((rows - 20) / 25).square())[None]  # 1 at row 20, 0.53 at row 0, 0.3 at row 47
    assert score(logits(hill), line(20, 0, 64), thresholds=[0.3]) < 10
    assert score(logits(hill), line(20, 0, 64), thresholds=[0.3], nms=True) > 95


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.zeros(1, 2, 8, 8), torch.zeros(1, 8, 8), r"prediction .*\(1, 8, 8\).*\(1, 2, 8, 8\)"),
        (torch.zeros(8, 8), torch.zeros(8, 8), r"target .*\(8, 8\)"),
        (torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.5), r"target must hold 0, 1 .*0\.5"),
        (torch.full((1, 8, 8), torch.nan), torch.zeros(1, 8, 8), r"prediction has 64 NaN.*diverged"),
    ],
)
def test_refuses(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        OptimalDatasetF().update(prediction, target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -0.1}, r"tolerance .*-0\.1"),
        ({"min_distance": math.nan}, "min_distance .*nan"),
        ({"thresholds": []}, "thresholds"),
        ({"thresholds": [0.5, 0.4]}, "thresholds .*increasing"),
        ({"thresholds": [0.5, 1.5]}, "thresholds .*probabilities"),
        ({"truth": "rims"}, "truth must be .*'rims'"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        OptimalDatasetF(**options)


def test_higher_is_better():
    assert OptimalDatasetF().higher_is_better is True
