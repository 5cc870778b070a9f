"""What the first and last bytes of a file say, without decoding it: of thousands of files, which are cut short or too small."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from experiments.dense.datasets.errors import BROKEN, DataError, missing, unreadable

_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_TAIL = 4096  # some writers leave a few bytes behind the end


@dataclass(frozen=True)
class Header:
    """What a file claims to hold.

    Attributes:
        size: Height and width; `None` where only decoding tells.
        channels: Per pixel.
        bits: Per channel.
    """

    size: tuple[int, int] | None
    channels: int = 0
    bits: int = 0


def read_header(path: Path) -> Header:
    """The header of a PNG, JPEG, NumPy or MATLAB file whose end is there.

    Raises:
        DataError: It is missing, empty, of another format than its suffix says, or cut short.
    """
    readers = {".png": _png, ".jpg": _jpeg, ".jpeg": _jpeg, ".npy": _npy, ".mat": _mat}
    try:
        return readers[path.suffix.lower()](path)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise missing(path) from error
    except BROKEN as error:
        raise unreadable(path, f"a file of kind {path.suffix}", error) from error


def _png(path: Path) -> Header:
    with path.open("rb") as file:
        start = file.read(26)
        if start[:8] != _PNG_START or start[12:16] != b"IHDR":
            raise unreadable(path, "a PNG", "it does not begin like one")
        if not _ends_with(file, _PNG_END):
            raise unreadable(path, "a PNG", "its end is not there: it was cut short")
    width, height, bits, colours = struct.unpack(">IIBB", start[16:26])
    if colours not in _PNG_CHANNELS:
        raise unreadable(path, "a PNG", f"there is no colour type {colours}")
    return Header((height, width), _PNG_CHANNELS[colours], bits)


def _jpeg(path: Path) -> Header:
    with path.open("rb") as file:
        if file.read(2) != b"\xff\xd8":
            raise unreadable(path, "a JPEG", "it does not begin like one")
        if not _ends_with(file, b"\xff\xd9"):
            raise unreadable(path, "a JPEG", "its end is not there: it was cut short")
    with Image.open(path, formats=("JPEG",)) as picture:
        return Header((picture.height, picture.width), len(picture.getbands()), 8)


def _npy(path: Path) -> Header:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.kind not in "biuf":
            raise unreadable(path, "an array of real numbers", dtype)
        held, claimed = os.fstat(file.fileno()).st_size - file.tell(), int(np.prod(shape)) * dtype.itemsize
        if held < claimed:
            raise unreadable(path, "a NumPy array", f"{held} of {claimed} bytes are there: it was cut short")
    size = (shape[0], shape[1]) if len(shape) > 1 else None
    return Header(size, shape[2] if len(shape) > 2 else 1, 8 * dtype.itemsize)


def _mat(path: Path) -> Header:
    """Of version 5 to 7: a head of 128 bytes, then elements that each begin with a type and a length."""
    with path.open("rb") as file:
        head = file.read(128)
        if not head.startswith(b"MATLAB 5.0") or head[126:128] not in (b"IM", b"MI"):
            raise unreadable(path, "a MATLAB file of version 5 to 7", "it does not begin like one")
        order, end = "<" if head[126:128] == b"IM" else ">", os.fstat(file.fileno()).st_size
        while (place := file.tell()) < end:
            _, length = struct.unpack(f"{order}II", file.read(8))
            if place + 8 + length > end:
                raise unreadable(path, "a MATLAB file", "its last variable is not whole: it was cut short")
            file.seek(length, os.SEEK_CUR)
    return Header(None)


def _ends_with(file: BinaryIO, mark: bytes) -> bool:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - len(mark)))
    if file.read() == mark:
        return True
    file.seek(max(0, end - _TAIL))
    return mark in file.read()
