from __future__ import annotations

import pytest

from dtme.viz.sheet import text_width
from experiments.figures.text_wrap import wrapped


@pytest.mark.parametrize("width", [0.5, 0.88, 2.0, 9.0])
def test_every_line_fits_and_no_word_is_lost(width):
    text = "MT as long as Adapt r8 last block, even gradients"
    lines = wrapped(text, width, 7.5).splitlines()
    assert all(text_width(line, 7.5) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert (len(lines) == 1) == (width == 9.0)


def test_a_word_wider_than_the_line_is_cut():
    lines = wrapped("a surface_normals_of_the_room b", 0.5).splitlines()
    assert all(text_width(line) <= 0.5 for line in lines)
    assert "".join(lines).replace(" ", "") == "asurface_normals_of_the_roomb"


def test_nothing_is_nothing():
    assert wrapped("", 1) == ""
