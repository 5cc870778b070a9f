from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from dtme.viz.palette import INK, METHODS, MUTED, PAPER, QUALITATIVE, colours, contrast, ink_on

# Linear RGB as dichromats see it, the model of Machado, Oliveira and Fernandes (2009) at full severity.
SIGHT = {
    "common": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, sight):
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    relative = XYZ @ np.clip(sight @ linear, 0, 1) / XYZ.sum(1)
    x, y, z = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_stay_apart_for_every_kind_of_sight(sight):
    seen = [lab(colour, SIGHT[sight]) for colour in QUALITATIVE]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(distances) > 20
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen[:5], 2)) > 30


def test_contrast_to_white_suffices_for_lines_and_for_text():
    assert min(contrast(to_rgb(colour), to_rgb(PAPER)) for colour in (*QUALITATIVE, *METHODS.values())) > 3
    assert min(contrast(to_rgb(colour), to_rgb(PAPER)) for colour in (INK, MUTED)) > 4.5


def test_ink_can_be_read_on_every_colour_of_the_maps():
    import matplotlib

    for share in np.linspace(0, 1, 101):
        colour = matplotlib.colormaps["viridis"](share)
        assert contrast(to_rgb(ink_on(colour)), colour) > 3


def test_methods_keep_their_colour_and_names_never_run_out():
    assert colours(["TM+TE", "MT"]) == {"TM+TE": METHODS["TM+TE"], "MT": METHODS["MT"]}
    assert len(colours(map(str, range(30)))) == 30


def test_other_methods_get_none_of_the_colours_that_are_taken():
    names = ["ST", "MT", "TM+TE", *(f"MT {times}x" for times in range(2, 10))]
    assert len(set(colours(names).values())) == len(names)
    assert colours(names)["MT"] == METHODS["MT"]
