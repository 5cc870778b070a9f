from __future__ import annotations

import math

import pytest
import torch

from dtme.metrics import RMSE, DepthRMSE, L1Error, MaxF, MeanAngularError, MeanIoU, OptimalDatasetF
from dtme.metrics._meter import Meter

METERS = {
    "semseg": lambda **options: MeanIoU(5, **options),
    "depth": DepthRMSE,
    "normals": MeanAngularError,
    "saliency": MaxF,
    "edges": OptimalDatasetF,
    "l1": L1Error,
    "rmse": RMSE,
}


def batch(task, size):
    """Random predictions and targets of some images."""
    generator = torch.Generator().manual_seed(size)
    channels = {"semseg": 5, "normals": 3}.get(task, 1)
    prediction = torch.randn(size, channels, 12, 16, generator=generator)
    if task == "semseg":
        return prediction, torch.randint(5, (size, 12, 16), generator=generator)
    if task == "normals":
        return prediction, torch.randn(size, 3, 12, 16, generator=generator)
    values = torch.rand(size, 12, 16, generator=generator)
    return prediction, (values > 0.8).to(torch.uint8) if task in ("saliency", "edges") else values


@pytest.mark.parametrize("protocol", ["standard", "invpt"])
@pytest.mark.parametrize("task", METERS)
def test_batches_of_no_samples_change_nothing(task, protocol):
    metric = METERS[task](protocol=protocol)
    metric.update(*batch(task, 0))
    assert math.isnan(metric.compute().item())
    metric.update(*batch(task, 3))
    value = metric.compute().item()
    assert math.isfinite(value)
    metric.update(*batch(task, 0))
    assert metric.compute().item() == value
    assert math.isnan(metric(*batch(task, 0)).item())  # of that batch alone
    assert metric.compute().item() == value


@pytest.mark.parametrize("protocol", ["standard", "invpt"])
@pytest.mark.parametrize("task", METERS)
def test_says_its_protocol(task, protocol):
    metric = METERS[task](protocol=protocol)
    assert isinstance(metric, Meter)
    assert metric.protocol == protocol
    assert f"protocol={protocol!r}" in repr(metric)


def test_says_what_else_the_figure_depends_on():
    assert repr(MeanIoU(21)) == "MeanIoU(num_classes=21, protocol='standard')"
    assert repr(MaxF(protocol="invpt")) == "MaxF(thresholds=19, protocol='invpt')"
    assert repr(RMSE(root=False)) == "RMSE(root=False, protocol='standard')"
    assert repr(DepthRMSE()) == "DepthRMSE(protocol='standard')"


@pytest.mark.parametrize("task", METERS)
def test_standard_is_the_default(task):
    assert METERS[task]().protocol == "standard"


@pytest.mark.parametrize("task", METERS)
def test_refuses_another_protocol(task):
    with pytest.raises(ValueError, match=r"protocol must be .*'other'"):
        METERS[task](protocol="other")


@pytest.mark.parametrize("task", METERS)
def test_states_are_sums(task):
    assert {kind.__name__ for kind in METERS[task]()._reductions.values()} == {"dim_zero_sum"}
