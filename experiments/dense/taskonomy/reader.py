"""Reading Taskonomy: maps of a building, a point and a view, unknown where the scan has a hole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from experiments.dense.datasets.errors import DataError, missing
from experiments.dense.datasets.pictures import read_gray, read_gray16, read_rgb
from experiments.dense.datasets.reader import IMAGE
from experiments.dense.datasets.roots import find
from experiments.dense.taskonomy.domains import DEPTHS, DOMAINS, HOLE, RGB
from experiments.dense.taskonomy.index import Building, Listing, domain_folders, list_buildings

SOURCE = (
    "omnitools.download of the omnidata project, with --domains "
    + " ".join((RGB, *DOMAINS))
    + " --subset tiny --components taskonomy"
)


@dataclass(frozen=True)
class TaskonomyReader:
    """What lies in a folder; names of images are `BUILDING/POINT/VIEW`.

    Attributes:
        layout: As of `Reader`.
        root: As of `Reader`.
        listing: Everything that was found.
        splits: As of `Reader`; filled in by the suite, as it depends on its choices.
        masked: Whether a target is unknown where the scan has a hole; without it, it is what the file holds there.
    """

    layout: str
    root: Path
    listing: Listing
    splits: Mapping[str, Sequence[str]]
    masked: bool = True

    @property
    def buildings(self) -> Mapping[str, Building]:
        """All that was found, by name."""
        return self.listing.buildings

    @property
    def tasks(self) -> tuple[str, ...]:
        """As of `Reader`."""
        found = {domain for building in self.buildings.values() for domain in building.where}
        return tuple(domain for domain in DOMAINS if domain in found)

    @property
    def one_file_each(self) -> bool:
        """As of `Reader`."""
        return True

    def place(self, name: str, of: str) -> Path:
        """As of `Reader`; of a file that is not there, where the first form of a download would have it."""
        building, point, view = parted(name)
        domain = RGB if of == IMAGE else of
        found = self.buildings[building].path(domain, point, view) if building in self.buildings else None
        usual = self.root / domain / "taskonomy" / building / f"point_{point}_view_{view}_domain_{domain}.png"
        return found or usual

    def has(self, name: str, of: str) -> bool:
        """As of `Reader`."""
        building, point, view = parted(name)
        domain = RGB if of == IMAGE else of
        return building in self.buildings and self.buildings[building].path(domain, point, view) is not None

    def read(self, name: str, of: str) -> Tensor:
        """As of `Reader`; of a target the stored numbers, float32 `(c, h, w)`, NaN where the scan has a hole."""
        path = self.place(name, of)
        if not self.has(name, of):
            raise missing(path)
        if of == IMAGE:
            return read_rgb(path, "PNG")
        stored = _stored(path, of)
        if self.masked and DOMAINS[of].needs_scan:
            hole = self._hole(name)
            if hole is not None:
                if hole.shape != stored.shape[1:]:
                    raise DataError(f"{path} is {tuple(stored.shape[1:])}, but its depth is {tuple(hole.shape)}.", path)
                stored = torch.where(hole, torch.nan, stored)
        return stored

    def with_splits(self, splits: Mapping[str, Sequence[str]], *, masked: bool) -> TaskonomyReader:
        """The same with these splits."""
        return replace(self, splits=splits, masked=masked)

    def _hole(self, name: str) -> Tensor | None:
        """Where the scan has a hole, as either depth tells; `None` where neither is there."""
        depth = next((depth for depth in DEPTHS if self.has(name, depth)), None)
        return None if depth is None else _depth(self.place(name, depth)) >= HOLE


def parted(name: str) -> tuple[str, int, int]:
    """Building, point and view.

    >>> parted("hanson/12/3")
    ('hanson', 12, 3)
    """
    building, point, view = name.split("/")
    return building, int(point), int(view)


def open_taskonomy(data: Path, progress: Callable[[int, int], None] | None = None) -> TaskonomyReader:
    """The reader of the Taskonomy that lies in a folder, or in the one right inside it, without splits yet.

    Args:
        data: The folder.
        progress: Told how many folders are listed, and of how many.

    Raises:
        DataError: There is nothing, or something else.
    """
    found = find(data, lambda folder: (folder, of) if (of := domain_folders(folder)) else None)
    if found is None:
        raise DataError(
            f"data={str(data)!r} holds no rgb/ beside other domains, as depth_euclidean/ and normal/: it is no Taskonomy. "
            f"The field gets it by {SOURCE}.",
            data,
        )
    root, folders = found
    listing = list_buildings(folders, progress)
    if not any(RGB in building.where for building in listing.buildings.values()):
        raise DataError(
            f"{root} has an rgb/ without pictures point_P_view_V_domain_rgb.png. Get them by {SOURCE}.", root
        )
    return TaskonomyReader("Taskonomy: a folder for each domain", root, listing, {})


def _stored(path: Path, of: str) -> Tensor:
    storage = DOMAINS[of].storage
    if storage == "RGB":
        return read_rgb(path, "PNG").float()
    return (_depth(path) if of in DEPTHS else read_gray16(path) if storage == "gray16" else read_gray(path))[
        None
    ].float()


@lru_cache(maxsize=2)
def _depth(path: Path) -> Tensor:
    """A depth as stored; kept, as nearly every map of an image asks for the same."""
    return read_gray16(path)
