from __future__ import annotations

import math

import pytest
import torch

from dtme.metrics import MeanIoU


def logits_of(labels, classes):
    return torch.nn.functional.one_hot(labels.long(), classes).movedim(-1, 1).float()


def value(metric, *batches):
    for prediction, target in batches:
        metric.update(prediction, target)
    return metric.compute().item()


def test_hand_computed_over_the_whole_set():
    # Class 0: 3 common of 4 together, class 1: 2 of 4, class 2: 1 of 2 (the 255 column counts for none).
    first = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 0, 1, 0]]], dtype=torch.uint8)
    second = torch.tensor([[[0, 1, 1, 2, 2]]]), torch.tensor([[[0, 1, 2, 2, 255]]], dtype=torch.uint8)
    expected = 100 * (3 / 4 + 2 / 4 + 1 / 2) / 3
    assert value(MeanIoU(3), first, second) == pytest.approx(expected)


def test_is_no_mean_over_samples():
    wrong_pixel = torch.tensor([[[1]]]), torch.tensor([[[0]]])
    right_pixels = torch.zeros(1, 1, 9, dtype=torch.int64), torch.zeros(1, 1, 9, dtype=torch.int64)
    # Class 0: 9 of 10, class 1: 0 of 1. The mean over the two samples would be (0 + 100) / 2.
    assert value(MeanIoU(2), wrong_pixel, right_pixels) == pytest.approx(45)


def test_absent_classes_by_protocol():
    pair = torch.tensor([[[0, 0]]]), torch.tensor([[[0, 0]]])
    assert value(MeanIoU(4), pair) == 100
    assert value(MeanIoU(4, protocol="invpt"), pair) == 25


def test_class_that_is_only_predicted_counts_as_zero():
    assert value(MeanIoU(3), (torch.tensor([[[0, 2]]]), torch.tensor([[[0, 0]]]))) == pytest.approx(25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_and_labels_agree(dtype):
    generator = torch.Generator().manual_seed(0)
    labels, target = torch.randint(5, (2, 3, 7, 6), generator=generator)
    assert value(MeanIoU(5), (logits_of(labels, 5).to(dtype), target)) == value(MeanIoU(5), (labels, target))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_target_types_and_custom_ignore_index(dtype):
    target = torch.tensor([[[0, 1, 9]]], dtype=dtype)
    assert value(MeanIoU(2, ignore_index=9), (torch.tensor([[[0, 1, 0]]]), target)) == 100


def test_cut_into_batches_does_not_matter():
    generator = torch.Generator().manual_seed(1)
    logits, target = torch.randn(5, 3, 4, 4, generator=generator), torch.randint(3, (5, 4, 4), generator=generator)
    whole = value(MeanIoU(3), (logits, target))
    pieces = value(MeanIoU(3), *((logits[rows], target[rows]) for rows in (slice(0, 2), slice(2, 4), slice(4, 5))))
    assert pieces == whole
    assert 0 < whole < 100


@pytest.mark.parametrize(("classes", "seen"), [(40, 13), (21, 21), (7, 4)])
def test_equals_a_loop_over_the_classes(classes, seen):
    """NYUD-v2, PASCAL-Context and human parts, of which not all classes occur."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(3, classes, 9, 8, generator=generator)
    logits[:, seen:] = -9
    target = torch.randint(seen, (3, 9, 8), generator=generator)
    target[0, :4] = 255
    known, labels = target != 255, logits.argmax(1)
    ratios = []
    for c in range(seen):
        both = (known & (labels == c) & (target == c)).sum().item()
        ratios.append(both / (known & ((labels == c) | (target == c))).sum().item())
    assert value(MeanIoU(classes), (logits, target.to(torch.uint8))) == pytest.approx(100 * sum(ratios) / seen)
    published = value(MeanIoU(classes, protocol="invpt"), (logits, target.to(torch.uint8)))
    assert published == pytest.approx(100 * sum(ratios) / classes)


def test_an_image_without_people_says_nothing_about_parts():
    people = torch.tensor([[[0, 1, 6]]]), torch.tensor([[[0, 1, 6]]])
    nobody = torch.tensor([[[0, 1, 6]]]), torch.full((1, 1, 3), 255)
    assert value(MeanIoU(7), people, nobody) == 100


def test_nothing_counted_is_nan():
    ignored = torch.tensor([[[0]]]), torch.tensor([[[255]]])
    assert math.isnan(value(MeanIoU(2), ignored))
    assert math.isnan(value(MeanIoU(2, protocol="invpt"), ignored))


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (
            torch.zeros(1, 3, 2, 2),
            torch.zeros(1, 2, 2, dtype=torch.int64),
            r"prediction .*\(1, 2, 2, 2\).*\(1, 3, 2, 2\)",
        ),
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), r"prediction .*float32 of shape \(1, 2, 2\)"),
        (torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.int64), r"target .*\(1, 1, 2, 2\)"),
        (torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2), r"target .*integer labels.*float32"),
        (torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), 2), r"target has label 2.*num_classes=2"),
        (torch.full((1, 1, 1), -1), torch.zeros(1, 1, 1, dtype=torch.int64), r"prediction has label -1"),
        (
            torch.full((1, 2, 1, 1), torch.nan),
            torch.zeros(1, 1, 1, dtype=torch.int64),
            r"prediction has 2 NaN.*diverged",
        ),
    ],
)
def test_refuses(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU(2).update(prediction, target)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"num_classes": 0}, "num_classes"), ({"num_classes": 2, "protocol": "x"}, "protocol")]
)
def test_refuses_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU(**arguments)


def test_higher_is_better():
    assert MeanIoU(2).higher_is_better is True
