"""The official `nyu_depth_v2_labeled.mat`: photographs, labels and filled-in depth, but neither normals nor edges."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.dense.datasets.arrays import read_mat
from experiments.dense.datasets.errors import BROKEN, DataError, unreadable
from experiments.dense.datasets.extras import imported
from experiments.dense.datasets.lists import check_apart
from experiments.dense.datasets.maps import classes_from, depth_from
from experiments.dense.datasets.pictures import MOST_PIXELS
from experiments.dense.datasets.reader import IMAGE, windowed
from experiments.dense.nyud.official import IMAGES, class_of_label, official_split

_VARIABLES = {IMAGE: "images", "semseg": "labels", "depth": "depths"}

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""Of HDF5, at the start or behind the 512 bytes that MATLAB writes before it."""


@dataclass(frozen=True)
class LabeledMat:
    """One HDF5 file of MATLAB's version 7.3, whose axes come in reverse: an image is stored as (3, w, h).

    Attributes:
        layout: As of `Reader`.
        root: The file.
        splits: As of `Reader`; names are numbers from 1, of four digits.
        to_40: The class, 1 to 40, of each label.
        window: The part of every map that is kept; `None` keeps all.
    """

    layout: str
    root: Path
    splits: Mapping[str, tuple[str, ...]]
    to_40: np.ndarray
    window: tuple[int, int, int, int] | None

    @staticmethod
    def of(path: Path, window: tuple[int, int, int, int] | None) -> LabeledMat:
        """The reader of such a file, with the official split and classes, or with those that lie beside it.

        Raises:
            DataError: A variable is missing or of a strange shape, or the split names an image that is not there.
        """
        shapes = {of: _variable(path, of).shape for of in _VARIABLES}
        count, channels, width, height = (*shapes[IMAGE], 0, 0, 0, 0)[:4]
        if (
            len(shapes[IMAGE]) != 4
            or channels != 3
            or any(shapes[of] != (count, width, height) for of in ("semseg", "depth"))
        ):
            raise DataError(f"{path} holds arrays of the shapes {shapes}: it is no nyu_depth_v2_labeled.mat.", path)
        if width * height > MOST_PIXELS:
            raise unreadable(path, "labelled images", f"they claim {height} x {width} pixels")
        splits = _splits(path, count)
        check_apart(splits, path)
        size = f"{height} x {width}" if window is None else f"inner {window[2]} x {window[3]}"
        return LabeledMat(f"nyu_depth_v2_labeled.mat, {size}", path, splits, _classes(path), window)

    @property
    def tasks(self) -> tuple[str, ...]:
        """As of `Reader`."""
        return ("semseg", "depth")

    @property
    def one_file_each(self) -> bool:
        """As of `Reader`."""
        return False

    def place(self, name: str, of: str) -> Path:
        """As of `Reader`: always the one file."""
        return self.root

    def has(self, name: str, of: str) -> bool:
        """As of `Reader`."""
        return of in _VARIABLES

    def read(self, name: str, of: str) -> Tensor:
        """As of `Reader`."""
        where = Path(f"{self.root}[{name}]")  # which of its images, for the errors
        try:
            stored = np.ascontiguousarray(np.swapaxes(_variable(self.root, of)[int(name) - 1], -1, -2))
        except BROKEN as error:
            raise unreadable(where, _VARIABLES[of], error) from error
        if of == "semseg":
            if int(stored.max()) >= len(self.to_40):
                raise DataError(
                    f"{where} holds the label {stored.max()}, but 0 to {len(self.to_40) - 1} are meant.", where
                )
            full = classes_from(torch.from_numpy(self.to_40[stored]), where, 40, zero="unknown")
        else:
            full = torch.from_numpy(stored) if of == IMAGE else depth_from(torch.from_numpy(stored), where)
        return windowed(full, self.window, where)


def is_labeled_mat(path: Path) -> bool:
    """Whether this is an HDF5 file with photographs, depths and labels."""
    if path.suffix != ".mat" or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(512 + len(_SIGNATURE))
    if _SIGNATURE not in (start[: len(_SIGNATURE)], start[512:]):
        return False  # told without h5py, as thousands of small files are asked
    h5py = imported("h5py", "Reading nyu_depth_v2_labeled.mat")
    try:
        with h5py.File(path, "r") as file:
            return all(name in file for name in _VARIABLES.values())
    except BROKEN as error:
        raise unreadable(path, "an HDF5 file", error) from error


def _splits(path: Path, count: int) -> dict[str, tuple[str, ...]]:
    beside = path.with_name("splits.mat")
    if not beside.is_file():
        if count != IMAGES:
            raise DataError(
                f"{path} holds {count} images, {IMAGES} are official; put the splits.mat of these beside it.", path
            )
        return dict(official_split())
    splits = {}
    for split, key in (("train", "trainNdxs"), ("test", "testNdxs")):
        numbers = np.asarray(read_mat(beside, key)).ravel().astype(int)
        if not len(numbers) or numbers.min() < 1 or numbers.max() > count:
            raise DataError(
                f"{beside}: {key} names images outside 1 to {count}. Get the one that belongs to the file.", beside
            )
        splits[split] = tuple(f"{number:04d}" for number in numbers)
    return splits


def _classes(path: Path) -> np.ndarray:
    beside = path.with_name("classMapping40.mat")
    if not beside.is_file():
        return class_of_label()
    return np.concatenate([[0], np.asarray(read_mat(beside, "mapClass")).ravel()]).astype(np.uint8)


def _variable(path: Path, of: str) -> Any:
    h5py = imported("h5py", "Reading nyu_depth_v2_labeled.mat")
    try:
        held = _file(path, os.getpid()).get(_VARIABLES[of])
    except BROKEN as error:
        raise unreadable(path, "an HDF5 file", error) from error
    if not isinstance(held, h5py.Dataset) or held.external:
        raise DataError(f"{path} has no array {_VARIABLES[of]!r} of its own: get the file again.", path)
    return held


@lru_cache(maxsize=4)
def _file(path: Path, process: int) -> Any:
    """The file, opened once in each process, since an open one must not cross a fork."""
    return imported("h5py", "Reading nyu_depth_v2_labeled.mat").File(path, "r")
