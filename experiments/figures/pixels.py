"""Predictions as colours: one rule for every kind of task."""

from __future__ import annotations

import colorsys

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from torch import Tensor

from dtme._shapes import Shaped
from dtme.viz.palette import FAINT
from experiments.figures.samples import Kind

Pixels = NDArray[np.uint8]

DEPTH = "magma_r"
SIGNED = "RdBu_r"
_UNKNOWN = np.round(255 * np.array(to_rgb(FAINT))).astype(np.uint8)


def label_colours(count: int) -> NDArray[np.uint8]:
    """RGB of the class labels 0, 1, ...: the same label has the same colour in every figure.

    Example:
        >>> label_colours(2).tolist()
        [[31, 119, 180], [255, 127, 14]]
    """
    listed = matplotlib.colormaps["tab20"](range(20))[:, :3]
    strong_first = np.concatenate([listed[::2], listed[1::2]])
    golden = (  # beyond the list, hues a golden angle apart
        colorsys.hls_to_rgb(label * 0.618034 % 1, 0.35 + 0.15 * (label % 3), 0.6) for label in range(20, count)
    )
    rows = np.array([*strong_first, *golden])[:count]
    return np.round(255 * rows).astype(np.uint8)


def value_range(truth: Shaped[Tensor, "*1 h w"], kind: Kind) -> tuple[float, float]:
    """The values between which the colours of a row run: those of the truth, so that all its pictures compare.

    Example:
        >>> import torch
        >>> value_range(torch.tensor([[0.0, 2.0, 5.0]]), "depth"), value_range(torch.tensor([[-0.5, 0.2]]), "signed")
        ((2.0, 5.0), (-0.5, 0.5))
    """
    if kind not in ("depth", "signed"):
        return 0.0, 1.0
    values = _array(truth)
    known = values[_known(values, kind)]
    if kind == "depth":
        return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    furthest = (float(np.abs(known).max()) if known.size else 0.0) or 1.0
    return -furthest, furthest


def pixels(values: Shaped[Tensor, "*c h w"], kind: Kind, within: tuple[float, float]) -> Pixels:
    """One picture, (h, w, 3).

    Labels have fixed colours, depth and signed values those of a colour map, normals are (n + 1) / 2, edges dark on
    white. What is unknown is grey; what lies outside of `within` has the colour of its end.

    Example:
        >>> import torch
        >>> pixels(torch.tensor([0.0, 0.0, -2.0]).view(3, 1, 1), "normals", (0, 1)).tolist()
        [[[128, 128, 0]]]
    """
    array = _array(values)
    known = _known(array, kind)
    if kind == "labels":
        labels = np.where(known, array, 0).astype(int)
        return np.where(known[..., None], label_colours(int(labels.max()) + 1)[labels], _UNKNOWN)
    if kind == "normals":
        array = np.where(known, array, 0.0)
        length = np.linalg.norm(array, axis=0)
        unit = array / np.where(length > 0, length, 1.0)
        coloured = (np.moveaxis(unit, 0, -1) + 1) / 2
        known = length > 0
    else:
        low, high = within
        share = np.clip((np.where(known, array, low) - low) / ((high - low) or 1.0), 0, 1)
        name = {"depth": DEPTH, "edges": "gray_r", "signed": SIGNED}[kind]
        coloured = matplotlib.colormaps[name](share)[..., :3]
    return np.where(known[..., None], np.round(255 * coloured).astype(np.uint8), _UNKNOWN)


def _array(values: Tensor) -> NDArray[np.float64]:
    array = values.detach().cpu().double().numpy()
    return array[0] if array.ndim == 3 and len(array) == 1 else array


def _known(array: NDArray[np.float64], kind: Kind) -> NDArray[np.bool_]:
    known = np.isfinite(array)
    if kind == "normals":
        return np.all(known, axis=0)
    if kind in ("labels", "edges"):
        return known & (array != 255)
    return known & (array > 0) if kind == "depth" else known
