"""What is learned of Taskonomy's stored numbers, worked out by hand; its losses, likewise."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from experiments.dense.taskonomy import losses
from experiments.dense.taskonomy.domains import DOMAINS
from experiments.dense.taskonomy.transform import EncodeThenResize, ResizeThenEncode, blurred, smaller

NAN = math.nan


def plane(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(1, 1, -1)


@pytest.mark.parametrize(
    ("domain", "stored", "learned"),
    [
        ("depth_euclidean", (0, 511, 65535), (0, 9 / 16, 1)),  # log2(512) = 9 of 16
        ("depth_zbuffer", (255, 1), (0.5, 1 / 16)),
        ("edge_occlusion", (0, 204.8, 409.6, 4096), (-1, 0, 1, 19)),  # not clipped
        ("edge_texture", (0, 2621.44, 5242.88, 65535), (-1, 0, 1, 1)),  # clipped
        ("keypoints2d", (0, 163.84, 327.68, 933), (-1, 0, 1, 1)),
        ("keypoints3d", (0, 32768, 65536), (-1, 0, 1)),
        ("segment_unsup2d", (0, 51, 255), (-1, -0.6, 1)),
        ("segment_unsup25d", (0, 102, 255), (-1, -0.2, 1)),
    ],
)
def test_encodings(domain, stored, learned):
    torch.testing.assert_close(DOMAINS[domain].encode(plane(*map(float, stored))), plane(*map(float, learned)))


def test_encodings_of_colours():
    stored = torch.tensor([255.0, 102.0, 0.0]).reshape(3, 1, 1)
    assert DOMAINS["normal"].encode(stored).flatten().tolist() == pytest.approx([1, -0.2, -1])
    assert DOMAINS["reshading"].encode(stored).flatten().tolist() == [1.0]
    curvature = torch.tensor([123.572 + 31.922, 120.1 - 2 * 21.658, 0.0]).reshape(3, 1, 1)
    torch.testing.assert_close(DOMAINS["principal_curvature"].encode(curvature).flatten(), torch.tensor([1.0, -2.0]))


def test_smaller_means_are_of_known_pixels():
    values = torch.tensor([[2.0, 4.0, 8.0, 8.0], [2.0, NAN, 8.0, 8.0], [1.0] * 4, [1.0] * 4])[None]
    made = smaller(values, (2, 2))
    # A triangle over 4 x 4 pixels, cut at the border: weights 3, 3, 1 along each side.
    weights = torch.tensor([3.0, 3.0, 1.0])
    weight = weights[:, None] * weights[None]
    corner = values[0, :3, :3]
    known = corner.isfinite()
    expected = (weight * torch.where(known, corner, 0.0)).sum() / (weight * known).sum()
    torch.testing.assert_close(made[0, 0, 0], expected)
    assert made.isfinite().all()
    holes = torch.full((1, 4, 4), 5.0)
    holes[0, :2, :3] = NAN
    # Upper left, 36 of 49 parts are unknown; upper right, 24 of 49. What is unknown does not leak into what is known.
    made = smaller(holes, (2, 2))[0]
    assert made.isnan().tolist() == [[True, False], [False, False]]
    torch.testing.assert_close(made[~made.isnan()], torch.full((3,), 5.0))


def test_smaller_is_what_pillow_makes_of_it():
    from PIL import Image

    values = np.random.default_rng(0).random((12, 16)).astype(np.float32)
    of_pillow = np.asarray(Image.fromarray(values).resize((8, 6), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(smaller(torch.from_numpy(values)[None], (6, 8))[0], of_pillow, atol=1e-6)


def test_blur_is_of_known_pixels():
    values = torch.randn(1, 20, 20)
    np.testing.assert_allclose(blurred(values, 4.0)[0], gaussian_filter(values[0].numpy(), 4.0), atol=1e-6)
    flat = torch.full((1, 20, 20), 3.0)
    flat[0, 5:9, 5:9] = NAN
    made = blurred(flat, 4.0)
    assert torch.equal(made.isnan(), flat.isnan())
    torch.testing.assert_close(made[~made.isnan()], torch.full((384,), 3.0))


def maps(side: int = 8) -> dict[str, torch.Tensor]:
    number = torch.arange(side * side).reshape(1, side, side).float()
    regions = torch.zeros(1, side, side)
    regions[..., side // 2 :] = 10
    return {
        "image": number.repeat(3, 1, 1).to(torch.uint8),
        "depth_euclidean": number * 100,
        "segment_unsup2d": regions,
        "normal": torch.stack([number[0], number[0] * 0, number[0] * 0 + 255]),
    }


class Mirrored(random.Random):
    def random(self) -> float:
        return 0.0


def test_mirroring_turns_normals_round():
    plain = EncodeThenResize((4, 4), mirror=False)(maps(), Mirrored())
    mirrored = EncodeThenResize((4, 4), mirror=True)(maps(), Mirrored())
    torch.testing.assert_close(mirrored["depth_euclidean"], plain["depth_euclidean"].flip(-1))
    torch.testing.assert_close(mirrored["normal"][0], -plain["normal"][0].flip(-1))
    torch.testing.assert_close(mirrored["normal"][1:], plain["normal"][1:].flip(-1))


def test_what_is_measured_on_is_not_changed_by_chance():
    one, two = (EncodeThenResize((4, 4))(maps(), random.Random(seed)) for seed in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_regions_keep_their_numbers_and_are_averaged_in_the_authors_way():
    sound = EncodeThenResize((3, 3))(maps(), random.Random(0))["segment_unsup2d"]
    assert sound.unique().tolist() == pytest.approx([-1.0, 20 / 255 - 1])
    quirky = ResizeThenEncode((3, 3))(maps(), random.Random(0))["segment_unsup2d"]
    assert len(quirky.unique()) > 2


def test_depth_is_encoded_before_or_after_it_is_made_smaller():
    pair = {"depth_euclidean": torch.tensor([[[0.0, 65535.0], [0.0, 65535.0]]])}
    assert EncodeThenResize((1, 1))(pair, random.Random(0))["depth_euclidean"].item() == pytest.approx(0.5)
    whole = ResizeThenEncode((1, 1))(pair, random.Random(0))["depth_euclidean"].item()
    assert whole == pytest.approx(math.log(1 + 32768) / math.log(65536), abs=1e-5)


class Moved(random.Random):
    def randint(self, a: int, b: int) -> int:
        return b

    def random(self) -> float:
        return 0.9


def test_the_author_moves_training_samples_by_a_pixel():
    made = ResizeThenEncode((8, 8), train=True)(maps(), Moved())
    plain = ResizeThenEncode((8, 8))(maps(), random.Random(0))
    torch.testing.assert_close(made["normal"][:, :7, :7], plain["normal"][:, 1:, 1:])
    assert made["normal"][:, 7].eq(-1).all()
    assert made["normal"][:, :, 7].eq(-1).all()
    assert made["depth_euclidean"][0, 7].eq(0).all()


def test_the_author_mirrors_normals_as_they_are():
    class Flipped(Mirrored):
        def randint(self, a: int, b: int) -> int:
            return a

    plain = ResizeThenEncode((8, 8))(maps(), random.Random(0))
    mirrored = ResizeThenEncode((8, 8), train=True)(maps(), Flipped())
    torch.testing.assert_close(mirrored["normal"], plain["normal"].flip(-1))


# --- losses ---


def test_losses_of_known_pixels():
    prediction = torch.tensor([[[[1.0, 5.0, -2.0]], [[0.0, 0.0, 4.0]]]])
    target = torch.tensor([[[[0.5, NAN, 0.0]], [[0.0, NAN, 1.0]]]])
    assert losses.l1_loss(prediction, target).item() == pytest.approx((0.5 + 2 + 0 + 3) / 4)
    assert losses.squared_loss(prediction, target).item() == pytest.approx((0.25 + 4 + 0 + 9) / 4)


def test_cosine_is_over_channels():
    prediction = torch.tensor([[1.0, 0.0, 0.0], [3.0, 4.0, 0.0], [1.0, 1.0, 1.0]]).T.reshape(1, 3, 1, 3)
    target = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [NAN, NAN, NAN]]).T.reshape(1, 3, 1, 3)
    assert losses.cosine_loss(prediction, target).item() == pytest.approx((0 + 0.2) / 2)


def test_the_authors_cosine_is_along_rows():
    prediction, target = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    rows = [
        1 - float(p @ t) / float(p.norm() * t.norm())
        for p, t in zip(prediction.reshape(-1, 5), target.reshape(-1, 5), strict=True)
    ]
    assert losses.width_cosine_loss(prediction, target).item() == pytest.approx(sum(rows) / len(rows), rel=1e-5)


@pytest.mark.parametrize("loss", [losses.l1_loss, losses.squared_loss, losses.cosine_loss])
def test_where_nothing_is_known_loss_and_gradient_are_zero(loss):
    prediction = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = loss(prediction, torch.full((2, 3, 4, 4), NAN))
    value.backward()
    assert value.item() == 0
    assert prediction.grad is not None
    assert prediction.grad.eq(0).all()
