"""What the maps of many images hold, summed up image by image and worker by worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experiments.dense.datasets.errors import Fault
from experiments.dense.datasets.kinds import Kind


@dataclass
class MapStatistics:
    """Of one map, over all images that were looked at.

    Attributes:
        files: How many were looked at.
        sizes: Height and width, and how often.
        bits: Channels and bits of a channel, and how often, as headers say.
        decoded: How many were decoded; what follows is of these.
        low: Lowest known value.
        high: Highest known value.
        classes: How many pixels each class has, 255 of them unknown.
        pixels: How many there are.
        unknown: How many are unknown.
        short: How many normals are shorter than 1/2, though not zero.
    """

    files: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    bits: Counter[tuple[int, int]] = field(default_factory=Counter)
    decoded: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    classes: Counter[int] = field(default_factory=Counter)
    pixels: int = 0
    unknown: int = 0
    short: int = 0

    def add(self, values: Tensor, kind: Kind | None) -> None:
        """Count a map, of a kind or, without one, the picture."""
        self.decoded += 1
        known = _known(values, kind)
        self.pixels += known.numel()
        self.unknown += int((~known).sum())
        if kind == "classes":
            counts = torch.bincount(values.flatten().int(), minlength=256)
            self.classes.update({number: int(count) for number, count in enumerate(counts) if count})
        if kind == "normals":
            length = values.norm(dim=0)
            self.short += int(((length < 0.5) & known).sum())
        held = values[:, known] if values.ndim == 3 else values[known]
        if held.numel():
            self.low, self.high = min(self.low, float(held.min())), max(self.high, float(held.max()))

    def merge(self, other: MapStatistics) -> None:
        """Add what another worker counted."""
        self.files += other.files
        self.decoded += other.decoded
        self.sizes.update(other.sizes)
        self.bits.update(other.bits)
        self.classes.update(other.classes)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.pixels += other.pixels
        self.unknown += other.unknown
        self.short += other.short


@dataclass(frozen=True)
class Broken:
    """A map that is not what it should be.

    Attributes:
        of: Which map.
        path: Its file.
        fault: What kind of wrong.
        said: What is wrong.
    """

    of: str
    path: str
    fault: Fault
    said: str


@dataclass
class Seen:
    """What a worker saw.

    Attributes:
        maps: Per map.
        broken: What is wrong, file by file.
    """

    maps: dict[str, MapStatistics] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)

    def of(self, name: str) -> MapStatistics:
        """The statistics of a map."""
        return self.maps.setdefault(name, MapStatistics())

    def merge(self, other: Seen) -> None:
        """Add what another worker saw."""
        for name, own in other.maps.items():
            self.of(name).merge(own)
        self.broken += other.broken


def size_words(sizes: Mapping[tuple[int, int], int], most: int = 3) -> str:
    """The commonest sizes as words.

    >>> size_words(Counter({(425, 560): 1449}))
    '425 x 560'
    >>> size_words(Counter({(375, 500): 9, (500, 375): 3, (333, 500): 1, (334, 500): 1}))
    '375 x 500 (9), 500 x 375 (3), 333 x 500 (1) and 1 more'
    """
    ranked = Counter(sizes).most_common()
    if len(ranked) == 1:
        return "{} x {}".format(*ranked[0][0])
    said = ", ".join(f"{height} x {width} ({count})" for (height, width), count in ranked[:most])
    return said + (f" and {len(ranked) - most} more" if len(ranked) > most else "")


def _known(values: Tensor, kind: Kind | None) -> Tensor:
    """Which pixels of a map are known, `(h, w)`."""
    if kind == "classes":
        return values != 255
    if kind == "depth":
        return values > 0
    if kind == "normals":
        return (values != 0).any(0)
    if kind == "values":
        return values.isfinite().all(0)
    return torch.ones(values.shape[-2:], dtype=torch.bool)
