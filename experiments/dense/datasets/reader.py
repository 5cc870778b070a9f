"""What reads one data set in one of its layouts: which images belong to which split, and what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from experiments.dense.datasets.errors import DataError, missing

IMAGE = "image"
"""The name of the picture among the maps of an image; every other name is a task's."""


class Reader(Protocol):
    """A data set on disk, read and never written to."""

    @property
    def layout(self) -> str:
        """Which of its layouts this is, as tables and checks have it."""
        ...

    @property
    def root(self) -> Path:
        """The folder or file."""
        ...

    @property
    def splits(self) -> Mapping[str, Sequence[str]]:
        """Names of images by split, in the order of the data set's own lists."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the layout can tell of an image, in the order of tables."""
        ...

    @property
    def one_file_each(self) -> bool:
        """Whether every map of every image is a file of its own, whose header can be read."""
        ...

    def place(self, name: str, of: str) -> Path:
        """The file that holds the picture (`"image"`) or a task's target of an image."""
        ...

    def has(self, name: str, of: str) -> bool:
        """Whether it is there; a file that is there may still be unreadable."""
        ...

    def read(self, name: str, of: str) -> Tensor:
        """The picture, 0 to 255, `(3, h, w)`, or a target as its kind says, at the size it is stored in.

        Raises:
            DataError: It is missing, unreadable, or holds what it should not.
        """
        ...


@dataclass(frozen=True)
class Stored:
    """How one map of every image is stored in a folder of files.

    Attributes:
        folder: Below the root.
        suffix: Of the files, with its dot.
        decode: Reads one file.
        instead: Folder and suffix of files that are read where they exist, in place of these.
    """

    folder: str
    suffix: str
    decode: Callable[[Path], Tensor]
    instead: tuple[str, str] | None = None


@dataclass(frozen=True)
class FolderReader:
    """A data set of one file for each image and map, `ROOT/FOLDER/NAME.SUFFIX`.

    Attributes:
        layout: As of `Reader`.
        root: As of `Reader`.
        splits: As of `Reader`.
        stored: Per map, how it is stored; `"image"` is the picture.
        window: Rows and columns of every map that are kept, as (top, left, height, width); `None` keeps all.
    """

    layout: str
    root: Path
    splits: Mapping[str, tuple[str, ...]]
    stored: Mapping[str, Stored]
    window: tuple[int, int, int, int] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """As of `Reader`."""
        return tuple(of for of in self.stored if of != IMAGE)

    @property
    def one_file_each(self) -> bool:
        """As of `Reader`."""
        return True

    def place(self, name: str, of: str) -> Path:
        """As of `Reader`."""
        stored = self.stored[of]
        if stored.instead is not None:
            better = self.root / stored.instead[0] / f"{name}{stored.instead[1]}"
            if better.is_file():
                return better
        return self.root / stored.folder / f"{name}{stored.suffix}"

    def has(self, name: str, of: str) -> bool:
        """As of `Reader`."""
        return self.place(name, of).is_file()

    def read(self, name: str, of: str) -> Tensor:
        """As of `Reader`."""
        path = self.place(name, of)
        if not path.is_file():
            raise missing(path)
        return windowed(self.stored[of].decode(path), self.window, path)


def windowed(full: Tensor, window: tuple[int, int, int, int] | None, path: Path) -> Tensor:
    """The part (top, left, height, width) of a map `(..., h, w)`.

    Raises:
        DataError: The map is smaller.
    """
    if window is None:
        return full
    top, left, height, width = window
    if full.shape[-2] < top + height or full.shape[-1] < left + width:
        raise DataError(
            f"{path} is {full.shape[-2]} x {full.shape[-1]}, too small to cut {height} x {width} at ({top}, {left}).",
            path,
        )
    return full[..., top : top + height, left : left + width].contiguous()


def read_sample(
    reader: Reader, name: str, tasks: Iterable[str], *, leave_out: bool = False, skipped: list[str] | None = None
) -> dict[str, Tensor]:
    """The picture and the targets of an image, all of one size.

    Args:
        reader: Of the data set.
        name: Of the image.
        tasks: Whose targets.
        leave_out: Leave out a target that is not there, rather than raise.
        skipped: Given a list, a file that cannot be decoded is left out and the reason put there, rather than raised; without the
            picture nothing is left.

    Raises:
        DataError: A file is missing, unreadable, or of another size than the picture.
    """
    sample: dict[str, Tensor] = {}
    for of in (IMAGE, *tasks):
        if leave_out and of != IMAGE and not reader.has(name, of):
            continue
        try:
            sample[of] = reader.read(name, of)
        except DataError as error:
            if skipped is None or error.fault != "unreadable":
                raise
            skipped.append(str(error))
            if of == IMAGE:
                return {}
        else:
            _check_size(reader, name, of, sample[of], sample[IMAGE])
    return sample


def stored_size(reader: Reader, names: Sequence[str], tries: int = 10) -> tuple[int, int]:
    """Height and width of the first picture that can be read.

    Raises:
        DataError: Of the first few none can.
    """
    try:
        height, width = reader.read(names[0], IMAGE).shape[-2:]
    except DataError:
        if tries == 1 or len(names) == 1:
            raise
        return stored_size(reader, names[1:], tries - 1)
    return height, width


def _check_size(reader: Reader, name: str, of: str, target: Tensor, picture: Tensor) -> None:
    if target.shape[-2:] != picture.shape[-2:]:
        path = reader.place(name, of)
        sizes = " x ".join(map(str, target.shape[-2:])), " x ".join(map(str, picture.shape[-2:]))
        raise DataError(f"{path} is {sizes[0]}, but its picture is {sizes[1]}: they are of different copies.", path)
