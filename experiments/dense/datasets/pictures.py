"""PNG and JPEG files as tensors: only the format that is meant, only the channels and bits that are meant, never huge."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.dense.datasets.errors import BROKEN, DataError, missing, unreadable

MOST_PIXELS = 4096 * 4096
"""No data set read here has larger images; a file that claims more is not decoded."""

Format = Literal["PNG", "JPEG"]

_MODES = {"RGB": ("RGB", "L"), "gray": ("L", "P"), "gray16": ("I;16", "I;16B", "I")}
_WORDS = {"RGB": "three channels of 8 bits", "gray": "one channel of 8 bits", "gray16": "one channel of 16 bits"}


def read_rgb(path: Path, encoded: Format) -> Tensor:
    """A colour picture, uint8 `(3, h, w)`; a gray one gets three equal channels.

    Raises:
        DataError: The file is missing, cannot be decoded, or is of another kind.
    """
    return torch.from_numpy(_decoded(path, encoded, "RGB")).permute(2, 0, 1).contiguous()


def read_gray(path: Path, encoded: Format = "PNG") -> Tensor:
    """A picture of one channel of 8 bits, uint8 `(h, w)`; of a palette the indices, not the colours.

    Raises:
        DataError: The file is missing, cannot be decoded, or is of another kind.
    """
    return torch.from_numpy(_decoded(path, encoded, "gray"))


def read_gray16(path: Path) -> Tensor:
    """A PNG of one channel of 16 bits, int32 `(h, w)`, as 16 bits without sign are not enough of a type in torch.

    Raises:
        DataError: The file is missing, cannot be decoded, or is of another kind.
    """
    return torch.from_numpy(_decoded(path, "PNG", "gray16").astype(np.int32))


def _decoded(path: Path, encoded: Format, kind: str) -> np.ndarray:
    try:
        with Image.open(path, formats=(encoded,)) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise unreadable(
                    path, f"a {encoded}", f"it claims {height} x {width} pixels, {MOST_PIXELS} are the most"
                )
            if picture.mode not in _MODES[kind]:
                raise DataError(
                    f"{path} is a picture of mode {picture.mode!r} where {_WORDS[kind]} are meant. "
                    "It is another file than its place says: get the right one.",
                    path,
                )
            return np.array(picture.convert("RGB") if kind == "RGB" else picture)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise missing(path) from error
    except (*BROKEN, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise unreadable(path, f"a {encoded}", error) from error
