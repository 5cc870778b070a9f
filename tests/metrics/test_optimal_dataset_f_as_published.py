"""odsF as InvPT and its predecessors count it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dtme.metrics import OptimalDatasetF
from dtme.metrics.edges.boundaries import region_boundaries
from dtme.metrics.edges.suppression import suppress_non_maxima
from dtme.metrics.edges.thinning import thin


def line(row, first=10, last=50):
    """An image with a horizontal line of 40 pixels."""
    image = torch.zeros(1, 64, 64)
    image[:, row, first:last] = 1
    return image


def logits(probability):
    return torch.logit(probability, eps=1e-6)


def score(prediction, target, protocol="invpt", **options):
    metric = OptimalDatasetF(protocol=protocol, **options)
    metric.update(prediction, target)
    return metric.compute().item()


def test_thresholds_have_to_be_surpassed():
    """Cut off to 8 bits, 0.2 is 51 / 255, which is no more than 0.2; 0.6 is 153 / 255."""
    target = torch.zeros(1, 64, 64)  # two regions, with a boundary at row 19
    target[:, :20] = 1
    for level, threshold in ((51.5, 0.2), (153.5, 0.6)):
        prediction = logits(line(19, 0, 64) * level / 255)
        options = {"nms": False, "truth": "regions"}
        assert score(prediction, target, thresholds=[threshold], **options) == 0
        assert score(prediction, target, thresholds=[threshold - 0.01], **options) == 100
        assert score(prediction, target, thresholds=[threshold], protocol="standard", **options) == 100


def test_takes_no_more_from_a_probability_than_8_bits():
    """0.3543 lies beyond 0.354, but is cut off to 90 / 255 = 0.3529."""
    options = {"truth": "edges", "nms": False, "thresholds": [0.354]}
    assert score(logits(0.3543 * line(20)), line(20), **options) == 0
    assert score(logits(0.3543 * line(20)), line(20), protocol="standard", **options) == 100


def test_takes_edge_maps_for_regions():
    """A line's rims merge into a line that is moved by at most a pixel."""
    rims = thin(region_boundaries(line(20)[0].numpy()))
    metric = OptimalDatasetF(protocol="invpt", nms=False)
    metric.update(logits(torch.from_numpy(rims)[None].float()), line(20))
    assert metric.true == rims.sum() < 45
    assert metric.compute() == 100


def test_regions_may_have_any_numbers():
    regions = torch.zeros(1, 64, 64, dtype=torch.int32)
    regions[:, 20:], regions[:, 40:] = 255, 459
    truth = line(19, 0, 64) + line(39, 0, 64)
    assert score(logits(truth), regions, nms=False, ignore_index=-1) == 100


def test_equals_a_literal_computation_of_the_invpt_protocol():
    """Image by image and threshold by threshold, with suppression, thinning and an assignment of all pixels."""
    generator = torch.Generator().manual_seed(7)
    regions = torch.randint(3, (3, 5, 6), generator=generator).repeat_interleave(6, 1).repeat_interleave(5, 2)
    blur = torch.nn.functional.avg_pool2d((regions == 1).float()[:, None], 5, 1, 2)
    prediction = 4 * blur - 2 + 0.5 * torch.randn(blur.shape, generator=generator)
    metric = OptimalDatasetF(tolerance=0.04, protocol="invpt", ignore_index=-1)
    metric.update(prediction, regions)
    thresholds = [0.001, *(k / 100 for k in range(1, 100)), 0.999]
    assert metric.thresholds == tuple(thresholds)
    matched, predicted = np.zeros((2, 101), int)
    true = 0
    for image, labels in zip(prediction[:, 0].sigmoid().numpy(), regions.numpy(), strict=True):
        edges = np.argwhere(thin(region_boundaries(labels)))
        true += len(edges)
        kept = suppress_non_maxima(
            (image * 255).astype(np.uint8).astype(np.float32) / np.float32(255), as_published=True
        )
        for k, threshold in enumerate(thresholds):
            found = np.argwhere(thin(kept > np.float32(threshold)))
            far = np.linalg.norm(found[:, None] - edges[None], axis=-1) > 0.04 * math.hypot(30, 30)
            predicted[k] += len(found)
            matched[k] += int((~far[linear_sum_assignment(far.astype(float))]).sum())
    assert metric.true == true
    assert metric.predicted.tolist() == predicted.tolist()
    assert metric.matched.tolist() == matched.tolist()
    assert metric.compute().item() == pytest.approx(max(200 * matched / (true + predicted)))


def test_says_all_that_the_figure_depends_on():
    assert repr(OptimalDatasetF(tolerance=0.011, protocol="invpt")) == (
        "OptimalDatasetF(tolerance=0.011, min_distance=0.0, thresholds=101, nms=True, truth='regions', "
        "protocol='invpt')"
    )
