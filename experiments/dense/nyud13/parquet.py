"""The parquet form of the 13-class set: rows of nested lists, unpacked once into the user's cache and read from there."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from experiments.dense.datasets.cache import cache_dir
from experiments.dense.datasets.errors import BROKEN, DataError, unreadable
from experiments.dense.datasets.extras import imported
from experiments.dense.datasets.reader import IMAGE
from experiments.dense.nyud13.maps import labels_from, metres_from, picture_from, vectors_from

COLUMNS = {IMAGE: ("image", 3), "semseg": ("segmentation", 1), "depth": ("depth", 1), "normals": ("normal", 3)}
"""Per map its column and channels. A column `noise` is no task: MTAN's files have it for a test of theirs."""

_DECODERS: Mapping[str, Callable[[np.ndarray, Path], Tensor]] = {
    IMAGE: picture_from,
    "semseg": labels_from,
    "depth": metres_from,
    "normals": vectors_from,
}


@dataclass(frozen=True)
class ParquetReader:
    """The set as it was unpacked.

    Attributes:
        layout: As of `Reader`.
        root: Folder of the parquet files.
        splits: As of `Reader`; names are `train-0`, `val-0` and so on.
        unpacked: Folder in the user's cache, of one array for each split and map.
    """

    layout: str
    root: Path
    splits: Mapping[str, Sequence[str]]
    unpacked: Path

    @property
    def tasks(self) -> tuple[str, ...]:
        """As of `Reader`."""
        return tuple(of for of in COLUMNS if of != IMAGE)

    @property
    def one_file_each(self) -> bool:
        """As of `Reader`."""
        return False

    def place(self, name: str, of: str) -> Path:
        """As of `Reader`: the array that holds it."""
        return self.unpacked / f"{name.partition('-')[0]}-{of}.npy"

    def has(self, name: str, of: str) -> bool:
        """As of `Reader`."""
        return of in COLUMNS

    def read(self, name: str, of: str) -> Tensor:
        """As of `Reader`."""
        where = self.root / f"{name}[{COLUMNS[of][0]}]"
        stored = np.array(_mapped(self.place(name, of), os.getpid())[int(name.partition("-")[2])])
        if of == "semseg":
            return _DECODERS[of](stored[0], where)
        return _DECODERS[of](stored.transpose(1, 2, 0), where)


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of each split, in order, of a folder or of `data` in it."""
    for place in (folder, folder / "data"):
        found = {split: sorted(place.glob(f"{split}-*.parquet")) for split in ("train", "val")}
        if all(found.values()):
            return found
    return {}


def open_parquet(folder: Path, size: tuple[int, int], progress: Callable[[int, int], None]) -> ParquetReader:
    """The reader of the parquet files in a folder, unpacked on first use.

    Args:
        folder: Of the files; never written to.
        size: Height and width of the images.
        progress: Told how many rows are unpacked, and of how many.

    Raises:
        DataError: A file is unreadable, lacks a column, or holds maps of another size.
        OSError: The cache has no space; says how much is needed.
    """
    files = parquet_files(folder)
    counts = {split: sum(_rows(path) for path in paths) for split, paths in files.items()}
    unpacked = cache_dir() / "nyud13" / _digest(files, size)
    if not unpacked.is_dir():
        _unpack(files, counts, size, unpacked, progress)
    splits = {
        "train": [f"train-{row}" for row in range(counts["train"])],
        "test": [f"val-{row}" for row in range(counts["val"])],
    }
    return ParquetReader("13 classes at 288 x 384 (MTAN): parquet", folder, splits, unpacked)


def _unpack(
    files: Mapping[str, list[Path]],
    counts: Mapping[str, int],
    size: tuple[int, int],
    target: Path,
    progress: Callable[[int, int], None],
) -> None:
    """Into a folder that gets its name only once it is whole; of two that unpack at once, the first one's stays."""
    needed = sum(counts.values()) * size[0] * size[1] * (7 * 4 + 1)
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(target.parent).free < 1.1 * needed:
        raise OSError(
            f"unpacking the parquet files takes {needed / 1e9:.1f} GB in {target.parent}, where less is free; "
            "set DTME_CACHE to a folder with the space."
        )
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    part.mkdir()
    try:
        done = 0
        for split, paths in files.items():
            arrays = {of: _array(part / f"{split}-{of}.npy", of, counts[split], size) for of in COLUMNS}
            row = 0
            for path in paths:
                for values in _rows_of(path, size):
                    for of, array in arrays.items():
                        array[row] = values[of]
                    row, done = row + 1, done + 1
                    progress(done, sum(counts.values()))
            if row != counts[split]:
                raise unreadable(paths[-1], f"{counts[split]} rows of {split}", f"{row} are there")
            for array in arrays.values():
                array.flush()
        try:
            part.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _rows_of(path: Path, size: tuple[int, int]) -> Any:
    """Per row, an array `(channels, h, w)` of each map."""
    parquet = imported("pyarrow.parquet", f"Reading {path.name}")
    pyarrow = imported("pyarrow", f"Reading {path.name}")
    columns = [column for column, _ in COLUMNS.values()]
    with parquet.ParquetFile(path) as file:
        absent = set(columns) - set(file.schema_arrow.names)
        if absent:
            raise DataError(f"{path} has no column {sorted(absent)[0]!r}, it has {file.schema_arrow.names}.", path)
        try:
            for batch in file.iter_batches(batch_size=4, columns=columns):
                for row in range(batch.num_rows):
                    yield {
                        of: _flat(batch.column(column), row, path, channels, size)
                        for of, (column, channels) in COLUMNS.items()
                    }
        except DataError:
            raise
        except (*BROKEN, pyarrow.ArrowException) as error:
            raise unreadable(path, "parquet", error) from error


def _flat(column: Any, row: int, path: Path, channels: int, size: tuple[int, int]) -> np.ndarray:
    values = column.slice(row, 1)
    while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
        values = values.flatten()
    numbers = values.to_numpy(zero_copy_only=False)
    if len(numbers) != channels * size[0] * size[1]:
        raise DataError(
            f"{path} holds a map of {len(numbers)} numbers, {channels} x {size[0]} x {size[1]} are meant: "
            "another size belongs to another benchmark.",
            path,
        )
    return numbers.reshape(channels, *size)


def _rows(path: Path) -> int:
    parquet = imported("pyarrow.parquet", f"Reading {path.name}")
    pyarrow = imported("pyarrow", f"Reading {path.name}")
    try:
        return parquet.read_metadata(path).num_rows
    except (*BROKEN, pyarrow.ArrowException) as error:
        raise unreadable(path, "parquet", error) from error


def _array(path: Path, of: str, rows: int, size: tuple[int, int]) -> np.memmap:
    kind = np.int8 if of == "semseg" else np.float32
    return np.lib.format.open_memmap(path, "w+", kind, (rows, COLUMNS[of][1], *size))


def _digest(files: Mapping[str, list[Path]], size: tuple[int, int]) -> str:
    said = hashlib.sha256(repr(size).encode())
    for paths in files.values():
        for path in paths:
            stat = path.stat()
            said.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return said.hexdigest()[:16]


@lru_cache(maxsize=16)
def _mapped(path: Path, process: int) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)
