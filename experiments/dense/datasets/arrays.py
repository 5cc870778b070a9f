"""NumPy and MATLAB files as arrays, without pickle and never huge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.dense.datasets.errors import BROKEN, DataError, missing, unreadable
from experiments.dense.datasets.extras import imported
from experiments.dense.datasets.pictures import MOST_PIXELS


def read_npy(path: Path) -> np.ndarray:
    """The numbers in a `.npy` file.

    Raises:
        DataError: The file is missing, cut short, no array of plain numbers, or huge.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # the header and the length, before any memory
    except FileNotFoundError as error:
        raise missing(path) from error
    except BROKEN as error:
        raise unreadable(path, "a NumPy array", error) from error
    if not isinstance(mapped, np.ndarray) or mapped.dtype.kind not in "biuf":
        raise unreadable(path, "a NumPy array of real numbers", getattr(mapped, "dtype", "an archive"))
    return np.array(bounded(path, mapped, mapped.shape))


def read_mat(path: Path, key: str) -> Any:
    """One variable of a MATLAB file of version 5 to 7.

    Raises:
        DataError: The file is missing, cannot be decoded, has no such variable, or a huge one.
    """
    scipy_io = imported("scipy.io", f"Reading {path.name}")
    try:
        shapes = {name: shape for name, shape, _ in scipy_io.whosmat(path)}
        if key in shapes:
            bounded(path, None, shapes[key])
            return scipy_io.loadmat(path, variable_names=[key])[key]
    except DataError:
        raise
    except FileNotFoundError as error:
        raise missing(path) from error
    except (*BROKEN, scipy_io.matlab.MatReadError) as error:
        raise unreadable(path, "a MATLAB file", error) from error
    raise DataError(f"{path} has the variables {sorted(shapes)}, but not {key!r}: it is another file than meant.", path)


def bounded(path: Path, array: Any, shape: tuple[int, ...]) -> Any:
    """The array, once its shape is known to be that of something, and at most of one large picture.

    Raises:
        DataError: It is empty or larger.
    """
    if 0 in shape:
        raise unreadable(path, "a map", f"its shape is {shape}: it is empty")
    if np.prod(shape, dtype=np.float64) > 3 * MOST_PIXELS:
        raise unreadable(path, "one map", f"it claims the shape {shape}")
    return array
