"""Transforms against values worked out by hand, and the rule that all chance comes from the generator given."""

from __future__ import annotations

import colorsys
import random

import numpy as np
import pytest
import torch

from experiments.dense.transforms import colour, geometry
from experiments.dense.transforms.invpt import PadOnly, ScaleCropFlip
from experiments.dense.transforms.turned import FixedResize, TurnZoomFlip, turn
from experiments.dense.transforms.zoomed import ZoomFlip

KINDS = {"semseg": "classes", "depth": "depth", "normals": "normals", "values": "values"}


def grid(height: int = 2, width: int = 4) -> dict[str, torch.Tensor]:
    """Maps in which every pixel has its own number."""
    number = torch.arange(height * width).reshape(height, width)
    return {
        "image": number.repeat(3, 1, 1).to(torch.uint8),
        "semseg": number.to(torch.uint8),
        "depth": number.float() + 1,
        "normals": torch.stack([number.float() + 1, torch.zeros(height, width), torch.ones(height, width)]),
        "values": number[None].float(),
    }


class Drawn(random.Random):
    """Gives the numbers it was told to, in order."""

    def __init__(self, *numbers: float) -> None:
        super().__init__(0)
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)

    def uniform(self, a: float, b: float) -> float:
        value = self.numbers.pop(0)
        assert a <= value <= b
        return value

    def randint(self, a: int, b: int) -> int:
        value = self.numbers.pop(0)
        assert a <= value <= b
        return int(value)

    def choice(self, seq):
        value = self.numbers.pop(0)
        assert value in seq
        return value


def test_scaling_takes_nearest_pixels_and_divides_depth():
    scaled = geometry.scale(grid(), KINDS, 2.0)
    assert scaled["semseg"].tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6, 7, 7]] * 2
    assert scaled["depth"][0].tolist() == [0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 2.0, 2.0]
    assert scaled["normals"][0, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert scaled["values"].shape == (1, 4, 8)
    # Bilinear between pixel centres: a quarter and three quarters of the way.
    assert scaled["image"][0, 0].tolist() == [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]


def test_a_scaled_size_is_rounded_down():
    assert geometry.size_of(geometry.scale(grid(3, 5), KINDS, 0.7)) == (2, 3)  # int(2.1), int(3.5)


def test_cropping_cuts_all_maps_alike():
    cut = geometry.crop(grid(), (1, 2, 1, 2))
    assert cut["semseg"].tolist() == [[6, 7]]
    assert cut["depth"].tolist() == [[7.0, 8.0]]
    assert cut["normals"].shape == (3, 1, 2)


def test_flipping_mirrors_and_negates_the_x_of_normals_alone():
    flipped = geometry.flip(grid(), KINDS)
    assert flipped["semseg"][0].tolist() == [3, 2, 1, 0]
    assert flipped["normals"][:, 0].tolist() == [[-4.0, -3.0, -2.0, -1.0], [0.0] * 4, [1.0] * 4]
    assert flipped["values"][0, 0].tolist() == [3.0, 2.0, 1.0, 0.0]
    again = geometry.flip(flipped, KINDS)
    assert all(torch.equal(again[name], each) for name, each in grid().items())
    zero = {"normals": torch.zeros(3, 1, 1)}
    assert not geometry.flip(zero, KINDS)["normals"].signbit().any()


def test_padding_puts_unknown_around_each_kind():
    padded = geometry.pad({**grid(), "image": torch.ones(3, 2, 4)}, KINDS, (5, 6))
    assert padded["semseg"].tolist() == [
        [255] * 6,
        [255, 0, 1, 2, 3, 255],
        [255, 4, 5, 6, 7, 255],
        [255] * 6,
        [255] * 6,
    ]
    assert padded["depth"][0].tolist() == [0.0] * 6
    assert padded["normals"][:, :, 0].eq(0).all()
    assert padded["values"].isnan().sum() == 30 - 8
    assert padded["image"].sum() == 24


def test_padding_of_the_paper():
    padded = geometry.pad({"image": torch.ones(3, 425, 560)}, {}, (448, 576))["image"]
    assert padded.shape == (3, 448, 576)
    assert padded[0, 11, 8] == 1
    assert padded[0, 435, 567] == 1
    assert padded[0].sum() == 425 * 560
    assert not padded[:, :11].any()
    assert not padded[:, :, :8].any()


def test_padding_never_shrinks():
    with pytest.raises(ValueError, match=r"480 x 640 do not fit into size=\(448, 576\)"):
        geometry.pad({"image": torch.ones(3, 480, 640)}, {}, (448, 576))


def test_boxes_lie_inside_and_a_short_side_is_kept_whole():
    chance = random.Random(0)
    boxes = {geometry.draw_box((10, 5), (4, 8), chance) for _ in range(200)}
    assert boxes == {(top, 0, 4, 5) for top in range(7)}


def test_a_box_is_drawn_anew_while_one_class_has_three_quarters():
    labels = torch.zeros(1, 8, dtype=torch.uint8)
    labels[0, 5:] = torch.tensor([1, 2, 255])
    # At 0: one class. At 3: 0 0 1 2 -> half. At 2: three zeros of four are three quarters.
    assert geometry.draw_mixed_box(labels, (1, 4), Drawn(0, 0, 0, 2, 0, 3)) == (0, 3, 1, 4)
    # Three of three known pixels, and nothing known, are no mixture either; after ten redraws the last box is taken.
    assert geometry.draw_mixed_box(labels, (1, 4), Drawn(*[0, 0] * 10, 0, 1)) == (0, 1, 1, 4)


def test_normalisation():
    white = torch.full((3, 1, 1), 255, dtype=torch.uint8)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(colour.normalise(white, *colour.IMAGENET).flatten(), torch.tensor(expected))


def test_colours_turn_as_in_a_literal_conversion():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 6, 7)).astype(np.float32)
    changed = colour.recolour(torch.from_numpy(pixels), 0.7, 12).numpy()
    for row, column in np.ndindex(6, 7):
        h, s, v = colorsys.rgb_to_hsv(*(pixels[:, row, column] / 255))
        expected = np.array(colorsys.hsv_to_rgb((h + 12 / 180) % 1, s * 0.7, v)) * 255
        np.testing.assert_allclose(changed[:, row, column], expected, atol=4)  # 8 bits of hue and saturation


def test_distortion_in_the_order_drawn():
    picture = torch.full((3, 1, 1), 100.0)
    picture[0] = 120
    # brightness yes (+10), contrast last, contrast yes (x 1.5), saturation no, hue no
    made = colour.distort(picture, Drawn(0.1, 10.0, 0.9, 0.1, 1.5, 0.9, 0.9))
    assert made.flatten().tolist() == [195.0, 165.0, 165.0]
    # brightness no, contrast first but no, saturation no, hue no
    assert torch.equal(colour.distort(picture, Drawn(0.9, 0.1, 0.9, 0.9, 0.9)), picture)
    bright = colour.distort(torch.full((3, 1, 1), 250.0), Drawn(0.1, 32.0, 0.1, 0.1, 0.5, 0.9, 0.9))
    assert bright.flatten().tolist() == [127.5] * 3  # clipped to 255 before it is halved


def sample(height: int = 40, width: int = 52) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(3, height, width, generator=generator), dim=0)
    return {
        "image": torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
        "semseg": torch.randint(0, 40, (height, width), generator=generator, dtype=torch.uint8),
        "depth": torch.rand(height, width, generator=generator) + 1,
        "normals": normals,
        "values": torch.rand(1, height, width, generator=generator),
    }


TRANSFORMS = {
    "invpt": ScaleCropFlip(KINDS, (48, 64)),
    "mti": TurnZoomFlip(KINDS, (48, 64)),
    "mtan": ZoomFlip(KINDS),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_same_chance_gives_the_same_and_another_gives_another(name):
    transform, given = TRANSFORMS[name], sample()
    kept = {of: each.clone() for of, each in given.items()}
    one, two, other = (transform(given, random.Random(seed)) for seed in ("0/0/0", "0/0/0", "0/1/0"))
    assert all(torch.allclose(one[of], two[of], rtol=0, atol=0, equal_nan=True) for of in given)
    assert not torch.equal(one["image"], other["image"])
    assert all(torch.equal(given[of], kept[of]) for of in given)  # what was given stays as it is
    assert set(one) == set(given)
    assert one["image"].dtype == torch.float32
    assert one["semseg"].dtype == torch.uint8


@pytest.mark.parametrize("name", TRANSFORMS)
def test_maps_stay_aligned(name):
    """What a pixel's label says, its depth, normal and value say, too, whatever was drawn."""
    number = torch.randint(1, 40, (40, 52), generator=torch.Generator().manual_seed(1))
    given = {
        "image": number.repeat(3, 1, 1).to(torch.uint8),
        "semseg": number.to(torch.uint8),
        "normals": torch.stack([torch.zeros(40, 52), torch.zeros(40, 52), number / 40.0]),
        "values": number[None].float(),
    }
    for seed in range(8):
        made = TRANSFORMS[name](given, random.Random(seed))
        known = made["semseg"] != 255
        assert torch.equal(made["values"][0][known], made["semseg"][known].float())
        assert made["values"][0][~known].isnan().all()
        if name != "mti":  # there they are made unit vectors
            torch.testing.assert_close(made["normals"][2][known], made["semseg"][known] / 40.0)
        assert not made["normals"][:, ~known].any()


def test_training_samples_have_one_size_whatever_the_scale():
    for seed in range(6):
        made = TRANSFORMS["invpt"](sample(), random.Random(seed))
        assert {geometry.size_of({"x": each}) for each in made.values()} == {(48, 64)}


def test_samples_without_labels_go_through():
    lone = {"image": sample()["image"], "depth": sample()["depth"]}
    for transform in TRANSFORMS.values():
        assert set(transform(lone, random.Random(3))) == {"image", "depth"}


def test_what_is_measured_on_is_padded_and_never_changed():
    made = PadOnly(KINDS, (48, 64))(sample(), random.Random(0))
    assert torch.equal(made["semseg"][4:44, 6:58], sample()["semseg"])
    assert torch.equal(made["depth"][4:44, 6:58], sample()["depth"])


def test_parts_without_people_are_unknown():
    blank = {
        "image": torch.zeros(3, 2, 2, dtype=torch.uint8),
        "parts": torch.tensor([[0, 0], [0, 255]], dtype=torch.uint8),
    }
    one = {**blank, "parts": torch.tensor([[0, 3], [0, 255]], dtype=torch.uint8)}
    for make in (PadOnly, FixedResize):
        transform = make({"parts": "classes"}, (2, 2), need_foreground=("parts",))
        assert transform(blank, random.Random(0))["parts"].tolist() == [[255, 255], [255, 255]]
        assert transform(one, random.Random(0))["parts"].tolist() == [[0, 3], [0, 255]]


def test_turning_by_a_quarter():
    """Counter-clockwise: what was on the right is on top, and what pointed right points up, where y is negative."""
    maps = {
        "image": torch.tensor([[0, 9], [0, 0]], dtype=torch.uint8).repeat(3, 1, 1),
        "semseg": torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8),
        "normals": torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1).repeat(1, 2, 2),
        "depth": torch.full((2, 2), 3.0),
    }
    made = turn(maps, KINDS, 90.0, 1.0)
    assert made["semseg"].tolist() == [[2, 4], [1, 3]]
    torch.testing.assert_close(made["normals"][:, 0, 0], torch.tensor([0.0, -1.0, 0.0]), atol=1e-6, rtol=0)
    assert made["depth"].tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_turning_of_oblong_maps_keeps_angles():
    """A line along the row through the middle lies along the column after a quarter turn, though sides differ."""
    labels = torch.zeros(5, 9, dtype=torch.uint8)
    labels[2] = 7
    made = turn({"semseg": labels}, KINDS, 90.0, 1.0)["semseg"]
    assert made[:, 4].tolist() == [7] * 5
    assert made[:, 0].tolist() == [255] * 5  # nothing comes from above the map
    assert made[:, 3].tolist() == [0] * 5


def test_zooming_out_and_in():
    maps = {"semseg": torch.full((4, 4), 5, dtype=torch.uint8), "depth": torch.full((4, 4), 3.0)}
    smaller = turn(maps, KINDS, 0.0, 0.5)
    assert smaller["semseg"].tolist() == [[255] * 4, [255, 5, 5, 255], [255, 5, 5, 255], [255] * 4]
    assert smaller["depth"][1].tolist() == [0.0, 6.0, 6.0, 0.0]
    larger = turn(maps, KINDS, 0.0, 1.5)
    assert larger["depth"].eq(2.0).all()


def test_a_part_is_enlarged_and_depth_divided():
    maps = {"image": torch.zeros(3, 6, 6, dtype=torch.uint8), "depth": torch.arange(36.0).reshape(6, 6)}
    made = ZoomFlip({"depth": "depth"})(maps, Drawn(1.5, 1, 2, 0.9))  # 4 x 4 pixels from (1, 2)
    assert made["depth"].shape == (6, 6)
    assert made["depth"][0].tolist() == pytest.approx([value / 1.5 for value in (8, 8, 9, 10, 10, 11)])
