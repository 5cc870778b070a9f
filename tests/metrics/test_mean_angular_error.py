from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtme.metrics import MeanAngularError


def image(*vectors, dtype=torch.float32):
    """One image whose pixels, in a row, hold the vectors."""
    return torch.tensor(vectors, dtype=dtype).T.reshape(1, 3, 1, len(vectors))


def error(prediction, target):
    metric = MeanAngularError()
    metric.update(prediction, target)
    return metric.compute().item()


def test_hand_computed_over_the_whole_set():
    metric = MeanAngularError()
    metric.update(image((0, 0, 5), (0, 3, 0)), image((0, 0, 1), (0, 0, 1)))  # 0 and 90
    metric.update(image((2, 0, 2)), image((0, 0, 1)))  # 45
    assert metric.compute().item() == pytest.approx(45)
    metric.update(image((1, 0, 0)), image((-1, 0, 0)))  # 180
    assert metric.compute().item() == pytest.approx(78.75)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_exact_at_both_ends(dtype):
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(4, 3, 16, 16, generator=generator), dim=1).to(dtype)
    assert error(normals, normals) == 0
    assert error(4 * normals, normals) == 0
    assert error(-normals, normals) == 180


@given(st.floats(1e-6, math.pi - 1e-6), st.floats(1e-15, 1e15))
def test_any_angle_and_length(angle, length):
    """Close to both ends too, where the arc cosine of a single-precision product is off by hundredths of a degree."""
    prediction = length * image((math.sin(angle), 0, math.cos(angle)), dtype=torch.float64)
    assert error(prediction, image((0, 0, 1))) == pytest.approx(math.degrees(angle), rel=1e-6)


def test_order_and_common_rotation_do_not_matter():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 2, 3, 5, 5, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    rotated = (torch.einsum("ij,bjhw->bihw", rotation, x) for x in (a, b))
    assert error(a, b) == pytest.approx(error(b, a)) == pytest.approx(error(*rotated))


@pytest.mark.parametrize("invalid", [(0, 0, 0), (math.nan, 0, 1), (math.inf, 0, 1), (255, 255, 255)])
def test_pixels_without_a_normal_do_not_count(invalid):
    assert error(image((0, 1, 1), (1, 0, 0)), image((0, 0, 1), invalid)) == pytest.approx(45)


def test_a_prediction_of_length_zero_points_nowhere():
    assert error(image((0, 0, 0)), image((0, 0, 1))) == 90


def test_equals_the_field_s_formula():
    """2 atan2(|p - g|, |p + g|) of unit vectors."""
    generator = torch.Generator().manual_seed(2)
    a, b = torch.nn.functional.normalize(torch.randn(2, 2, 3, 9, 9, generator=generator, dtype=torch.float64), dim=2)
    expected = (2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))).rad2deg().mean()
    metric = MeanAngularError(protocol="invpt")
    metric.update(5 * a, b)
    assert error(a, b) == metric.compute().item() == pytest.approx(expected.item())


def test_no_valid_pixel_is_nan():
    assert math.isnan(error(image((0, 0, 1)), image((0, 0, 0))))


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4), r"prediction .*\(1, 2, 4, 4\)"),
        (torch.ones(1, 3, 4, 5), torch.ones(1, 3, 4, 4), r"prediction .*\(1, 3, 4, 4\).*\(1, 3, 4, 5\)"),
        (torch.ones(1, 3, 4, 4), torch.ones(1, 4, 4), r"target .*\(1, 4, 4\)"),
        (torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4, dtype=torch.int8), r"target .*int8"),
        (image((math.nan, 0, 1)), image((0, 0, 1)), r"prediction has 1 NaN.*diverged"),
        (image((math.inf, 0, 1)), image((0, 0, 1)), r"prediction has 1 infinite.*float16"),
        (image((math.inf, -math.inf, 1)), image((0, 0, 0)), r"prediction has 2 infinite"),
    ],
)
def test_refuses(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        MeanAngularError().update(prediction, target)


def test_lower_is_better():
    assert MeanAngularError().higher_is_better is False
