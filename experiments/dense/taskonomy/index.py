"""What lies in a Taskonomy folder, listed once: for each building its points and views, and which domains know them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.dense.datasets.errors import DataError
from experiments.dense.taskonomy.domains import NAME_OF, RGB

_NAME = re.compile(
    r"(?:(?P<building>\w+)_)?point_(?P<point>0|[1-9]\d*)_view_(?P<view>0|[1-9]\d*)_domain_(?P<domain>\w+)\.png"
)
_SHIFT = 20
"""Bits for the view below the point; no building has as many views of a point."""

_STRANGE = 20
"""So many strange names are told, at most."""


@dataclass(frozen=True)
class Place:
    """A folder and what the names of one building's files in it have around point and view.

    Attributes:
        folder: Where the files lie.
        prefix: Before `point`.
        domain: After `domain_`.
    """

    folder: Path
    prefix: str
    domain: str

    def path(self, point: int, view: int) -> Path:
        """The file of a point and a view."""
        return self.folder / f"{self.prefix}point_{point}_view_{view}_domain_{self.domain}.png"


@dataclass(frozen=True)
class Listing:
    """All that was found.

    Attributes:
        buildings: By name.
        strange: Some PNGs whose names say no building, point, view and domain; they are not read.
    """

    buildings: Mapping[str, Building]
    strange: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Building:
    """The views of one building, in the order of their points and views.

    Attributes:
        keys: Point and view in one number, rising; of all domains together.
        where: Per domain, for each key the number of the place that has it, -1 where none has.
        places: Per domain, the folders that hold its files.
    """

    keys: np.ndarray
    where: Mapping[str, np.ndarray]
    places: Mapping[str, tuple[Place, ...]]

    def has(self, domain: str) -> np.ndarray:
        """For each key whether the domain knows it."""
        return self.where[domain] >= 0 if domain in self.where else np.zeros(len(self.keys), bool)

    def complete(self, domains: Iterable[str]) -> np.ndarray:
        """The keys that all these domains know."""
        known = np.ones(len(self.keys), bool)
        for domain in domains:
            known &= self.has(domain)
        return self.keys[known]

    def path(self, domain: str, point: int, view: int) -> Path | None:
        """The file of a point and a view, `None` where there is none."""
        if domain not in self.where or not len(self.keys):
            return None
        key = key_of(point, view)
        row = int(np.searchsorted(self.keys, key))
        if row == len(self.keys) or self.keys[row] != key or self.where[domain][row] < 0:
            return None
        return self.places[domain][self.where[domain][row]].path(point, view)


def key_of(point: int, view: int) -> int:
    """Point and view in one number.

    >>> point_and_view(key_of(1070, 8))
    (1070, 8)
    """
    return point << _SHIFT | view


def point_and_view(key: int) -> tuple[int, int]:
    """What `key_of` was made of."""
    return int(key) >> _SHIFT, int(key) & ((1 << _SHIFT) - 1)


def domain_folders(root: Path) -> dict[str, list[Path]]:
    """The folders of each domain that there are, by whatever name it goes; empty if this is no Taskonomy folder."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        if path.name in NAME_OF and path.is_dir():
            found.setdefault(NAME_OF[path.name], []).append(path)
    return found if RGB in found and len(found) > 1 else {}


def list_buildings(folders: Mapping[str, list[Path]], progress: Callable[[int, int], None] | None = None) -> Listing:
    """All buildings, of the union of the three forms a download has.

    `DOMAIN/taskonomy/BUILDING/point_..`, `DOMAIN/BUILDING/point_..` and `DOMAIN/BUILDING_point_..`.

    Args:
        folders: Of each domain.
        progress: Told how many folders are listed, and of how many.

    Raises:
        DataError: A folder cannot be listed.
    """
    work = [(domain, leaf) for domain, paths in folders.items() for path in paths for leaf in _leaves(path)]
    keys: dict[str, dict[str, dict[Place, list[int]]]] = {}
    strange: list[Path] = []
    with ThreadPoolExecutor(max_workers=8) as pool:
        for done, (found, others) in enumerate(pool.map(lambda task: _listed(*task), work), start=1):
            domain = work[done - 1][0]
            strange.extend(others)
            for building, places in found.items():
                for place, own in places.items():
                    keys.setdefault(building, {}).setdefault(domain, {}).setdefault(place, []).extend(own)
            if progress is not None:
                progress(done, len(work))
    buildings = {building: _building(of_domain) for building, of_domain in sorted(keys.items())}
    return Listing(buildings, tuple(strange[:_STRANGE]))


def _leaves(folder: Path) -> Iterator[tuple[Path, str]]:
    """Folders of files below a domain's, each with the building that its name is, or nothing where files name theirs."""
    yield folder, ""
    for inner in _folders(folder):
        if inner.name == "taskonomy":
            yield inner, ""
            yield from ((deeper, deeper.name) for deeper in _folders(inner))
        else:
            yield inner, inner.name


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error}). Make it readable.", folder, "unreadable") from error


def _listed(domain: str, leaf: tuple[Path, str]) -> tuple[dict[str, dict[Place, list[int]]], list[Path]]:
    """Keys of the files in one folder by building and place, and PNGs whose names say none."""
    folder, named = leaf
    found: dict[str, dict[Place, list[int]]] = {}
    strange: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                parts = _NAME.fullmatch(entry.name)
                own = parts["building"] or "" if parts else ""
                building = named or own
                if parts is None or not building or own not in ("", building) or NAME_OF.get(parts["domain"]) != domain:
                    if entry.name.endswith(".png") and len(strange) < _STRANGE:
                        strange.append(folder / entry.name)
                    continue
                place = Place(folder, f"{own}_" if own else "", parts["domain"])
                key = key_of(int(parts["point"]), int(parts["view"]))
                found.setdefault(building, {}).setdefault(place, []).append(key)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error}). Make it readable.", folder, "unreadable") from error
    return found, strange


def _building(of_domain: Mapping[str, Mapping[Place, list[int]]]) -> Building:
    every = np.unique(np.concatenate([np.array(own, np.int64) for of in of_domain.values() for own in of.values()]))
    where, places = {}, {}
    for domain, of in of_domain.items():
        places[domain] = tuple(sorted(of, key=lambda place: (len(str(place.folder)), str(place.folder), place.domain)))
        where[domain] = np.full(len(every), -1, np.int8)
        for number, place in reversed(list(enumerate(places[domain]))):
            where[domain][np.searchsorted(every, of[place])] = number
    return Building(every, where, places)
