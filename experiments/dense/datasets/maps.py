"""Targets as they lie in files, decoded to what `kinds` says and refused where they hold anything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.dense.datasets.arrays import read_mat, read_npy
from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.pictures import Format, read_gray, read_rgb

FARTHEST = 100.0
"""Metres; indoor depths end at 10, so beyond this they were stored in another unit."""


def classes_from(labels: Tensor, path: Path, highest: int, *, zero: str) -> Tensor:
    """Class labels as stored, `(h, w)`, to classes from 0, with 255 for unknown.

    Args:
        labels: Whole numbers of any type.
        path: Where they are from, for the error.
        highest: The highest label there is.
        zero: `"unknown"`: stored labels are 1 to `highest`, and become 0 to `highest - 1`; `"background"`: they are 0 to
            `highest`, 255 means unknown, and they stay.

    Raises:
        DataError: Labels are outside this set.
    """
    wide = labels.to(torch.int32)
    stray = (wide < 0) | (wide > highest)
    if zero == "background":
        stray &= wide != 255
    if bool(stray.any()):
        found = sorted(set(wide[stray].tolist()))[:5]
        raise DataError(
            f"{path} holds the labels {found}, but only 0 to {highest} are meant"
            f"{' and 255 for unknown' if zero == 'background' else ', 0 for unknown'}. Is it a map of other classes?",
            path,
        )
    if zero == "background":
        return wide.to(torch.uint8)
    return torch.where(wide == 0, 255, wide - 1).to(torch.uint8)


def read_classes_png(path: Path, highest: int, zero: str) -> Tensor:
    """As `classes_from`, of a PNG."""
    return classes_from(read_gray(path), path, highest, zero=zero)


def read_classes_mat(path: Path, key: str, highest: int, zero: str) -> Tensor:
    """As `classes_from`, of a MATLAB variable."""
    return classes_from(_plane(read_mat(path, key), path), path, highest, zero=zero)


def read_edges_png(path: Path) -> Tensor:
    """A PNG of 0 and 255, or of 0 and 1, as classes 0 and 1."""
    return _binary(read_gray(path), path)


def read_edges_npy(path: Path) -> Tensor:
    """An array of 0 and 1, or of 0 and 255, as classes 0 and 1."""
    return _binary(_plane(read_npy(path), path), path)


def read_saliency_png(path: Path) -> Tensor:
    """A PNG of 0 to 255, salient above 127.5, as classes 0 and 1."""
    return (read_gray(path) > 127.5).to(torch.uint8)


def read_depth_npy(path: Path) -> Tensor:
    """An array of metres, `(h, w)` or `(h, w, 1)`, 0 for unknown."""
    return depth_from(_plane(read_npy(path), path), path)


def read_depth_mat(path: Path) -> Tensor:
    """The variable `depth`, in metres, 0 for unknown."""
    return depth_from(_plane(read_mat(path, "depth"), path), path)


def depth_from(metres: Tensor, path: Path) -> Tensor:
    """Depth as stored, once it is finite, not negative and in metres.

    Raises:
        DataError: It is not.
    """
    depth = metres.to(torch.float32)
    if not bool(depth.isfinite().all()):
        count = int((~depth.isfinite()).sum())
        raise DataError(f"{path} holds {count} depths that are not finite. Write 0 where depth is unknown.", path)
    low, high = float(depth.min()), float(depth.max())
    if low < 0 or high > FARTHEST:
        raise DataError(
            f"{path} holds depths from {low:g} to {high:g}, but metres from 0 to {FARTHEST:g} are meant.", path
        )
    return depth


def read_normals_picture(path: Path, encoded: Format, shortest: float = 0.0) -> Tensor:
    """A picture whose three channels hold x, y and z from -1 at 0 to 1 at 255, `(3, h, w)`.

    As 127.5 cannot be stored, none of these is the zero vector, and even a gray pixel counts as known, unless `shortest` is
    given: vectors shorter than that become zero, which is unknown.
    """
    normals = read_rgb(path, encoded).to(torch.float32).mul_(2 / 255).sub_(1)
    return normals * (normals.norm(dim=0) >= shortest) if shortest else normals


def read_normals_npy(path: Path) -> Tensor:
    """An array `(h, w, 3)` of unit vectors, zero for unknown, as `(3, h, w)`."""
    stored = read_npy(path)
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise DataError(f"{path} has the shape {stored.shape}, but (h, w, 3) is meant.", path)
    return normals_from(torch.from_numpy(stored.astype(np.float32)).permute(2, 0, 1).contiguous(), path)


def normals_from(normals: Tensor, path: Path) -> Tensor:
    """Normals `(3, h, w)` as stored, once they are finite and no longer than unit vectors.

    Raises:
        DataError: They are not.
    """
    if not bool(normals.isfinite().all()):
        count = int((~normals.isfinite()).any(0).sum())
        raise DataError(f"{path} holds {count} normals that are not finite. Write zeros where unknown.", path)
    longest = float(normals.norm(dim=0).max())
    if longest > 1.5:
        raise DataError(f"{path} holds a normal of length {longest:g}, but unit vectors are meant.", path)
    return normals


def _binary(stored: Tensor, path: Path) -> Tensor:
    top = 255 if bool((stored == 255).any()) else 1
    stray = (stored != 0) & (stored != top)
    if bool(stray.any()):
        found = sorted(set(stored[stray].tolist()))[:5]
        raise DataError(f"{path} holds the values {found}, but only 0 and {top} are meant there.", path)
    return (stored == top).to(torch.uint8)


def _plane(stored: object, path: Path) -> Tensor:
    """An array `(h, w)` or `(h, w, 1)` of real numbers as a tensor `(h, w)` of a type that torch computes with."""
    array = np.asarray(stored)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise DataError(f"{path} has the shape {array.shape} of {array.dtype}, but (h, w) of numbers is meant.", path)
    wide = np.float32 if array.dtype.kind == "f" else np.int64
    return torch.from_numpy(np.ascontiguousarray(array, dtype=wide))
