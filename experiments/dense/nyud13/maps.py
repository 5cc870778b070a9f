"""The maps of the 13-class set, as arrays, decoded to what `kinds` says; both of its forms hold the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.dense.datasets.arrays import read_npy
from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.maps import depth_from, normals_from

CLASSES = (
    "bed",
    "books",
    "ceiling",
    "chair",
    "floor",
    "furniture",
    "objects",
    "picture",
    "sofa",
    "table",
    "tv",
    "wall",
    "window",
)
"""In the order of their numbers, from 0."""

SIZE = (288, 384)
COUNTS = {"train": 795, "test": 654}
"""Images; the literature calls the 654 `val`."""


def picture_from(stored: np.ndarray, path: Path) -> Tensor:
    """An image `(h, w, 3)` from 0 to 1, as `(3, h, w)` from 0 to 255."""
    if stored.ndim != 3 or stored.shape[2] != 3 or not _within(stored, 0, 1):
        raise DataError(f"{path} is no image (h, w, 3) of 0 to 1: it has {_said(stored)}.", path)
    return torch.from_numpy(stored.astype(np.float32) * 255).permute(2, 0, 1).contiguous()


def labels_from(stored: np.ndarray, path: Path) -> Tensor:
    """Classes `(h, w)` from 0 to 12, -1 for unknown, as uint8 with 255 for unknown."""
    whole = stored.ndim == 2 and bool(np.isfinite(stored).all()) and bool((stored == np.round(stored)).all())
    if not whole or not _within(stored, -1, len(CLASSES) - 1):
        raise DataError(
            f"{path} holds no labels (h, w) of -1 to 12: it has {_said(stored)}. "
            "Labels of 40 classes belong to another benchmark, the suite nyud.",
            path,
        )
    return torch.from_numpy(np.where(stored < 0, 255, stored).astype(np.uint8))


def metres_from(stored: np.ndarray, path: Path) -> Tensor:
    """Depth `(h, w, 1)` in metres, 0 for unknown, as `(h, w)`."""
    if stored.ndim != 3 or stored.shape[2] != 1:
        raise DataError(f"{path} is no depth (h, w, 1): it has {_said(stored)}.", path)
    return depth_from(torch.from_numpy(stored[..., 0].astype(np.float32)), path)


def vectors_from(stored: np.ndarray, path: Path) -> Tensor:
    """Normals `(h, w, 3)`, zero for unknown, as `(3, h, w)`."""
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise DataError(f"{path} holds no normals (h, w, 3): it has {_said(stored)}.", path)
    return normals_from(torch.from_numpy(stored.astype(np.float32)).permute(2, 0, 1).contiguous(), path)


def read_picture(path: Path) -> Tensor:
    """As `picture_from`, of a file."""
    return picture_from(read_npy(path), path)


def read_labels(path: Path) -> Tensor:
    """As `labels_from`, of a file."""
    return labels_from(read_npy(path), path)


def read_metres(path: Path) -> Tensor:
    """As `metres_from`, of a file."""
    return metres_from(read_npy(path), path)


def read_vectors(path: Path) -> Tensor:
    """As `vectors_from`, of a file."""
    return vectors_from(read_npy(path), path)


def _within(stored: np.ndarray, low: float, high: float) -> bool:
    return bool((stored >= low).all() and (stored <= high).all())


def _said(stored: np.ndarray) -> str:
    return f"the shape {stored.shape} and values from {stored.min():g} to {stored.max():g}"
