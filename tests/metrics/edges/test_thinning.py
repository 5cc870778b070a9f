from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from dtme.metrics.edges.thinning import going, thin


def literal_thinning(image):
    """Guo and Hall's conditions A1, as printed, one pixel after the other."""
    image = np.pad(image.astype(int), 1)
    while True:
        changed = False
        for second in (False, True):
            doomed = []
            for y, x in zip(*np.nonzero(image), strict=True):
                p2, p3, p4, p5 = image[y - 1, x], image[y - 1, x + 1], image[y, x + 1], image[y + 1, x + 1]
                p6, p7, p8, p9 = image[y + 1, x], image[y + 1, x - 1], image[y, x - 1], image[y - 1, x - 1]
                c = (
                    ((not p2) and (p3 or p4))
                    + ((not p4) and (p5 or p6))
                    + ((not p6) and (p7 or p8))
                    + ((not p8) and (p9 or p2))
                )
                n1 = (p9 or p2) + (p3 or p4) + (p5 or p6) + (p7 or p8)
                n2 = (p2 or p3) + (p4 or p5) + (p6 or p7) + (p8 or p9)
                side = ((p6 or p7 or not p9) and p8) if second else ((p2 or p3 or not p5) and p4)
                if c == 1 and 2 <= min(n1, n2) <= 3 and not side:
                    doomed.append((y, x))
            for y, x in doomed:
                image[y, x] = 0
                changed = True
        if not changed:
            return image[1:-1, 1:-1].astype(bool)


def blobs(count, height, width, seed=0):
    """Random binary images with thick parts, holes and loose pixels."""
    noise = np.random.default_rng(seed).standard_normal((count, height, width))
    return ndimage.gaussian_filter(noise, (0, 1, 1)) > -0.05


def components(image):
    """Connected parts of the image (8 neighbours) and of what it leaves open (4 neighbours)."""
    return ndimage.label(image, np.ones((3, 3)))[1], ndimage.label(np.pad(~image, 1, constant_values=True))[1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (17, 23)])
def test_equals_the_printed_conditions(shape):
    images = blobs(6, *shape)
    for image in images:
        np.testing.assert_array_equal(thin(image), literal_thinning(image))


def test_keeps_parts_and_holes_and_is_done():
    images = blobs(20, 32, 32, seed=1)
    thinned = np.stack([thin(image) for image in images])
    assert not (thinned & ~images).any()
    assert thinned.sum() < images.sum() / 2
    for before, after in zip(images, thinned, strict=True):
        assert components(before) == components(after)
        np.testing.assert_array_equal(thin(after), after)


def test_lines_stay_and_bars_become_lines():
    image = np.zeros((12, 12), bool)
    image[2, 1:11] = True
    np.testing.assert_array_equal(thin(image), image)
    bar = np.zeros((12, 12), bool)
    bar[5:8, 1:11] = True
    assert (thin(bar).sum(0) <= 1).all()
    assert thin(bar)[6, 2:10].all()


def test_a_pixel_alone_and_an_inner_pixel_stay():
    assert not going()[:, 0].any()
    assert not going()[:, 255].any()
    assert going()[0].sum() == going()[1].sum() > 0  # the two sides are each other's mirror images


def test_leaves_its_argument_alone():
    image = np.ones((8, 8), bool)
    thin(image)
    assert image.all()
