"""The two forms that the 13-class set comes in, MTAN's folders and parquet, told by what their files are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.headers import read_header
from experiments.dense.datasets.reader import IMAGE, FolderReader, Reader, Stored
from experiments.dense.datasets.roots import find
from experiments.dense.nyud13.maps import SIZE, read_labels, read_metres, read_picture, read_vectors
from experiments.dense.nyud13.parquet import open_parquet, parquet_files

SOURCES = "the files that lorenmt/mtan links, or tanganke/nyuv2 on the Hugging Face hub"

_FOLDERS = {
    IMAGE: ("image", read_picture),
    "semseg": ("label", read_labels),
    "depth": ("depth", read_metres),
    "normals": ("normal", read_vectors),
}


def open_nyud13(
    data: Path, *, size: tuple[int, int] = SIZE, progress: Callable[[int, int], None] | None = None
) -> Reader:
    """The reader of the set that lies in a folder, or in the one right inside it.

    Args:
        data: The folder.
        size: Height and width of its images.
        progress: Told how many parquet rows are unpacked into the cache, and of how many.

    Raises:
        DataError: There is nothing, something else, or images of another size.
    """
    found = find(data, lambda folder: _in(folder, size, progress or (lambda done, total: None)))
    if found is None:
        hint = " It looks like NYUD-v2 with 40 classes: that is the suite nyud." if _is_nyud(data) else ""
        raise DataError(
            f"data={str(data)!r} holds neither train/image/*.npy nor train-*.parquet: it is not the 13-class NYUv2 at "
            f"{size[0]} x {size[1]}.{hint} The field gets it here: {SOURCES}.",
            data,
        )
    return found


def _in(folder: Path, size: tuple[int, int], progress: Callable[[int, int], None]) -> Reader | None:
    if parquet_files(folder):
        return open_parquet(folder, size, progress)
    if not (folder / "train/image").is_dir() or not (folder / "val/image").is_dir():
        return None
    splits = {split: _names(folder, own) for split, own in (("train", "train"), ("test", "val"))}
    first = folder / splits["train"][0].replace("/", "/image/")
    found = read_header(first.with_name(f"{first.name}.npy")).size
    if found != size:
        raise DataError(
            f"{first}.npy is {found}, but the images of this benchmark are {size[0]} x {size[1]}: another size is another "
            "benchmark, whose numbers do not compare.",
            first,
        )
    stored = {of: Stored(own, ".npy", decode) for of, (own, decode) in _FOLDERS.items() if _any(folder, own)}
    return MtanFolders("13 classes at 288 x 384 (MTAN): folders of NumPy", folder, splits, stored)


class MtanFolders(FolderReader):
    """Names are `train/0`, `val/0` and so on; the files of a split lie in its own folders."""

    def place(self, name: str, of: str) -> Path:
        """As of `Reader`."""
        split, _, number = name.partition("/")
        return self.root / split / self.stored[of].folder / f"{number}.npy"


def _names(folder: Path, split: str) -> tuple[str, ...]:
    numbers = sorted(int(path.stem) for path in (folder / split / "image").glob("*.npy") if path.stem.isdigit())
    if not numbers:
        raise DataError(f"{folder / split / 'image'} holds no 0.npy, 1.npy and so on. Get the files again.", folder)
    return tuple(f"{split}/{number}" for number in numbers)


def _any(folder: Path, own: str) -> bool:
    return (folder / "train" / own).is_dir() or (folder / "val" / own).is_dir()


def _is_nyud(data: Path) -> bool:
    places = (data, *(path for path in data.iterdir() if path.is_dir())) if data.is_dir() else ()
    return any((place / "gt_sets").is_dir() for place in places)
