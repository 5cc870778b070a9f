"""What PASCAL-Context's MATLAB files say: the parts of people, and edges between regions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.dense.datasets.arrays import read_mat
from experiments.dense.datasets.errors import BROKEN, DataError, unreadable
from experiments.dense.datasets.extras import imported
from experiments.dense.pascal_context.official import CONTEXTS, PART_OF

PERSON = 15
"""The number of people among PASCAL VOC's classes."""


def read_contexts(path: Path) -> np.ndarray:
    """The context class of every pixel, int32 `(h, w)`, 0 to 459.

    Raises:
        DataError: The file is missing or unreadable, or its `LabelMap` holds anything else.
    """
    labels = np.asarray(read_mat(path, "LabelMap"))
    if labels.ndim != 2 or labels.dtype.kind not in "iufb":
        raise DataError(f"{path}: LabelMap has the shape {labels.shape} of {labels.dtype}, but (h, w) is meant.", path)
    if labels.min(initial=0) < 0 or labels.max(initial=0) > CONTEXTS:
        raise DataError(
            f"{path}: LabelMap goes from {labels.min()} to {labels.max()}, but 0 to {CONTEXTS} are meant.", path
        )
    return labels.astype(np.int32)


def read_edges(path: Path) -> Tensor:
    """Edges between the regions of all context classes, 1 on lines one pixel wide; uint8 `(h, w)`.

    A pixel lies at an edge where the Laplacian of the class numbers over its four neighbours is not zero; these pixels are
    thinned. What lies beyond the picture is its mirror image and makes no edge.
    """
    ndimage = imported("scipy.ndimage", "Edges of PASCAL-Context")
    morphology = imported("skimage.morphology", "Thinning of PASCAL-Context's edges")
    at_edge = ndimage.laplace(read_contexts(path), mode="mirror") != 0
    return torch.from_numpy(morphology.thin(at_edge).astype(np.uint8))


def read_regions(path: Path) -> Tensor:
    """The regions of one context class each, numbered apart where they do not touch by a side; int32 `(h, w)`.

    The boundary benchmark takes these for the truth about edges. No region has the number 255, which is for padding.
    """
    measure = imported("skimage.measure", "Regions of PASCAL-Context")
    regions = measure.label(read_contexts(path), background=-1, connectivity=1).astype(np.int32)
    return torch.from_numpy(regions + (regions >= 255))


def read_parts(path: Path, size: tuple[int, int]) -> Tensor:
    """The parts of people, 0 to 6, uint8 `(h, w)`; of objects that overlap the later one is seen.

    Args:
        path: A file of PASCAL-Part.
        size: Of the picture, as a file without people does not tell it.

    Raises:
        DataError: The file is missing or unreadable, names a part that people do not have, or is of another size.
    """
    drawn = np.zeros(size, np.uint8)
    try:
        for parts in people_in(read_mat(path, "anno")):
            for part in parts:
                name, mask = str(part[0].item()), np.asarray(part[1]) > 0
                if name not in PART_OF or mask.shape != size:
                    raise DataError(
                        f"{path} has a part {name!r} of {mask.shape}; {sorted(PART_OF)} of {size} are meant.", path
                    )
                drawn[mask] = PART_OF[name]
    except DataError:
        raise
    except BROKEN as error:
        raise unreadable(path, "an annotation of PASCAL-Part", error) from error
    return torch.from_numpy(drawn)


def people_in(anno: Any) -> Iterator[Any]:
    """For each person in an annotation its parts, which are at least one; each part a name and a mask."""
    for thing in anno[0, 0][1].ravel():
        number, parts = int(np.asarray(thing[1]).item()), thing[3]
        if number == PERSON and parts.size:
            yield parts.ravel()
