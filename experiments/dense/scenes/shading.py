"""From what a ray met to the value a sensor reads: pattern, light and shadow, exposure, noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dtme._shapes import Float, Int, Shaped
from experiments.dense.scenes.geometry import Geometry
from experiments.dense.scenes.layout import Layout
from experiments.dense.scenes.materials import Pattern
from experiments.dense.scenes.tracing import Hits, dot, visible

_LIFT = 0.002  # metres by which a point is lifted off its surface before its shadow rays are cast
_REACH = 0.25  # metres within which the corners of a room grow dark
_TABLE = torch.rand(1024, generator=torch.Generator().manual_seed(0))  # values of the noise that patterns use


def shade(scene: Geometry, layouts: Sequence[Layout], hits: Hits) -> Float[Tensor, "b 3 p"]:
    """Linear light that reaches the camera from every hit."""
    albedo = _albedo(hits)
    light = _corners(scene, hits)[:, None] * torch.tensor([layout.ambient for layout in layouts])[:, None, None]
    lifted = hits.point + hits.normal * _LIFT
    for i in range(2):
        position = torch.tensor([layout.lights[i].position for layout in layouts])
        colour = torch.tensor([layout.lights[i].colour for layout in layouts])
        to = position[..., None] - lifted
        square = dot(to, to)
        facing = dot(hits.normal, to).clamp_(min=0) / square.sqrt()
        lit = facing / (1 + 0.3 * square) * visible(scene, position, lifted)
        light = light + colour[..., None] * lit[:, None]
    return albedo * albedo * (light + hits.attributes[:, 20:21])


def expose(
    light: Float[Tensor, "b 3 p"], layouts: Sequence[Layout], scenes: Sequence[tuple[int, int]]
) -> Shaped[Tensor, "b 3 p"]:
    """8-bit values: automatic exposure, a film curve, noise that grows with brightness.

    Args:
        light: Linear light.
        layouts: Of the scenes, for their exposure and noise.
        scenes: Seed and number of each, which seed the noise.
    """
    total = (light * 4096).to(torch.int64).sum(dim=(1, 2))  # whole numbers, whose sum has no order
    mean = total.to(torch.float32) / (4096 * light[0].numel())
    aim = torch.tensor([0.35 * layout.exposure for layout in layouts])
    light = light * (aim / mean)[:, None, None]
    value = (light * (1 + light * 0.1) / (1 + light)).sqrt_()
    noise = torch.stack([_noise(*scene, light.shape[2]) for scene in scenes])
    noise *= torch.tensor([layout.noise for layout in layouts])[:, None, None] * (0.4 + 0.6 * value)
    return ((value + noise).clamp_(0, 1) * 255 + 0.5).to(torch.uint8)


def _noise(seed: int, scene: int, pixels: int) -> Float[Tensor, "3 p"]:
    """Bell-shaped noise of variance 1: the sum of four uniform draws."""
    digest = hashlib.sha256(f"dtme sensor {seed} {scene}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    a, b, c, d = torch.rand(4, 3, pixels, generator=generator)
    return (a + b + c + d - 2) * 3**0.5


def _corners(scene: Geometry, hits: Hits) -> Float[Tensor, "b p"]:
    """Share of the ambient light that is left near the edges of the room."""
    share = torch.ones_like(hits.depth)
    for axis in range(3):
        place, size = hits.point[:, axis], scene.room[:, axis, None]
        gap = torch.minimum(place, size - place).clamp_(min=0)
        share *= 1 - 0.45 * _REACH * _REACH / (_REACH * _REACH + gap * gap) * (1 - hits.normal[:, axis].abs())
    return share


def _albedo(hits: Hits) -> Float[Tensor, "b 3 p"]:
    """The colour of the pattern at every hit, as the eye grades it: the square root of the reflected share."""
    pattern, first, second = hits.attributes[:, 10:11], hits.attributes[:, 11:14], hits.attributes[:, 14:17]
    scale = hits.attributes[:, 17:20]
    place = hits.local * scale + 0.5
    cell = place.floor().to(torch.int64)
    salt = (first[:, 0] * 1000).to(torch.int64)  # makes one cell grid differ from the next
    key = cell[:, 0] * 73 + cell[:, 1] * 179 + cell[:, 2] * 283 + salt
    speck = _lookup(key)[:, None]
    parity = (cell.sum(dim=1, keepdim=True) % 2).to(torch.float32)
    patch = torch.stack([_lookup(key * 3 + channel) for channel in (0, 331, 577)], dim=1)
    mix = torch.where(pattern == Pattern.WOOD, _grain(place, salt)[:, None], speck)
    mix = torch.where(pattern == Pattern.CHECKER, parity, mix)
    mixed = first + (second - first) * mix
    return torch.where(pattern == Pattern.PATCHWORK, 0.1 + 0.6 * patch * (0.3 + first), mixed)


def _grain(place: Float[Tensor, "b 3 p"], salt: Int[Tensor, "b p"]) -> Float[Tensor, "b p"]:
    """Rings that waver along the x axis, with fine streaks."""
    x, y, z = place.unbind(1)
    ring = y * 0.35 + z * 0.35 + 1.6 * _smooth(x + z * 0.05, salt) + 0.8 * _smooth(y * 0.3 + z * 0.3, salt + 17)
    saw = ring - ring.floor()
    streak = _smooth(y * 1.9 + z * 1.9 + x * 0.1, salt + 41)
    return 0.65 * (1 - (2 * saw - 1).abs()) + 0.35 * streak


def _smooth(x: Float[Tensor, "b p"], salt: Int[Tensor, "b p"]) -> Float[Tensor, "b p"]:
    """Noise on a line: random values at whole numbers, joined smoothly."""
    low = x.floor()
    t = x - low
    key = low.to(torch.int64) + salt
    a, b = _lookup(key), _lookup(key + 1)
    return a + (b - a) * (t * t * (3 - 2 * t))


def _lookup(key: Int[Tensor, "b p"]) -> Float[Tensor, "b p"]:
    return _TABLE.take(key & 1023)
