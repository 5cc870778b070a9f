"""Changes of colour, and the normalisation that a trunk expects."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of the channels, of pixels from 0 to 1, as the field feeds its trunks."""

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""From -1 to 1: what timm's `augreg` weights were trained with."""

TURN = 180
"""Units of hue in a full turn, in which its shift is stated."""


def distort(picture: Tensor, chance: random.Random) -> Tensor:
    """Change brightness, contrast, saturation and hue at random, each half of the time.

    Brightness is moved by up to 32 of 255; contrast, before or after the colours, and saturation are multiplied by 0.5 to 1.5;
    hue is turned by up to a tenth. Every step keeps pixels within 0 to 255.

    Args:
        picture: `(3, h, w)`, 0 to 255, of any type.
        chance: Draws what is done.

    Returns:
        float32 `(3, h, w)`.
    """
    changed = picture.to(torch.float32)
    if chance.random() < 0.5:
        changed = (changed + chance.uniform(-32, 32)).clamp_(0, 255)
    contrast_first = chance.random() < 0.5
    contrast = chance.uniform(0.5, 1.5) if chance.random() < 0.5 else 1.0
    saturation = chance.uniform(0.5, 1.5) if chance.random() < 0.5 else 1.0
    hue = chance.randint(-18, 18) if chance.random() < 0.5 else 0
    if contrast_first:
        changed = (changed * contrast).clamp_(0, 255)
    changed = recolour(changed, saturation, hue)
    if not contrast_first:
        changed = (changed * contrast).clamp_(0, 255)
    return changed


def recolour(picture: Tensor, saturation: float, hue: int) -> Tensor:
    """Multiply the saturation of every pixel, and turn its hue by `hue / 180` of a circle.

    >>> recolour(torch.tensor([255.0, 0.0, 0.0]).reshape(3, 1, 1), 1.0, 60).flatten()  # a third of a turn: red to green
    tensor([  0., 255.,   0.])
    """
    if saturation == 1.0 and hue == 0:
        return picture
    pixels = picture.round().to(torch.uint8).permute(1, 2, 0).numpy()
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV"))
    turned = (hsv[..., 0].astype(np.int32) + round(hue * 256 / TURN)) % 256
    saturated = (hsv[..., 1] * np.float32(saturation)).clip(0, 255)
    changed = np.stack([turned, saturated, hsv[..., 2]], axis=-1).astype(np.uint8)
    rgb = np.array(Image.fromarray(changed, mode="HSV").convert("RGB"))
    return torch.from_numpy(rgb).permute(2, 0, 1).to(torch.float32)


def normalise(picture: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """Pixels from 0 to 255 as multiples of the deviation from the mean, per channel; float32 `(3, h, w)`.

    >>> normalise(torch.full((3, 1, 1), 255, dtype=torch.uint8), *HALF).flatten()
    tensor([1., 1., 1.])
    """
    middle = torch.tensor(mean).mul(255).reshape(3, 1, 1)
    width = torch.tensor(deviation).mul(255).reshape(3, 1, 1)
    return (picture.to(torch.float32) - middle) / width
