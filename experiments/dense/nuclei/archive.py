"""Read the pictures of the 2018 Data Science Bowl from their tar, in memory: nothing of it is ever written to disk."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from dtme._files import parse_json
from experiments.dense.datasets.errors import BROKEN
from experiments.dense.datasets.pictures import MOST_PIXELS

_OF_TARS = (ValueError, OverflowError, EOFError, LookupError, TypeError, RuntimeError)
"""What the reader of tars raises of its own where a head is damaged."""
REMEDY = "pass the path of dsb2018_nuclei.tar, or of the folder it unpacks to"


@dataclass(frozen=True)
class Archive:
    """Photographs and instance maps, as the bytes they are stored in.

    Attributes:
        path: Where they came from, for the error messages.
        files: `splits.json`, `images/NAME.jpg` and `instances/NAME.png`, by that name.
    """

    path: Path
    files: Mapping[str, bytes]

    def digest(self) -> str:
        """The same for the same files, packed or not."""
        total = hashlib.sha256()
        for name in sorted(self.files):
            total.update(f"{name}\0{hashlib.sha256(self.files[name]).hexdigest()}\n".encode())
        return total.hexdigest()

    def splits(self) -> dict[str, tuple[str, ...]]:
        """Names of the pictures in each split, as the archive itself divides them.

        Raises:
            ValueError: If `splits.json` is not a JSON object of lists, lacks `train` or `test`, or names a picture twice.
        """
        where = f"splits.json in {self.path}"
        try:
            data = parse_json(self.files["splits.json"].decode(), where)
            splits = {split: _names(names) for split, names in data.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{where} is no JSON object of lists of names ({error}); get the file again") from error
        for split in ("train", "test"):
            if not splits.get(split):
                raise ValueError(
                    f"{where} names no pictures under {split!r}, it has {sorted(splits)}; get the file again"
                )
        name, count = Counter(name for split in splits.values() for name in split).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{where} names {name!r} twice, so splits could overlap; keep it in one split")
        return splits

    def picture(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """One photograph, uint8 `(h, w, 3)`, and its instance map, int32 `(h, w)`, 0 for background.

        Raises:
            ValueError: If either is missing or cannot be decoded, or their sizes differ.
        """
        image = np.asarray(self._decode(f"images/{name}.jpg").convert("RGB"))
        instances = np.asarray(self._decode(f"instances/{name}.png")).astype(np.int32)
        if image.shape[:2] != instances.shape:
            raise ValueError(
                f"instances/{name}.png in {self.path} has shape {instances.shape}, but its image has {image.shape[:2]}; "
                f"an instance map is one channel of the image's size: mend the pair or take it out of splits.json"
            )
        return image, instances

    def _decode(self, file: str) -> Image.Image:
        if file not in self.files:
            raise ValueError(
                f"{self.path} lacks {file}, which its splits.json names; add it, or take the name out of splits.json"
            )
        try:
            # No other formats: some decoders start programs of their own.
            formats = ("JPEG", "PNG") if file.endswith(".jpg") else ("PNG",)
            picture = Image.open(io.BytesIO(self.files[file]), formats=formats)
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"it claims {picture.height} x {picture.width} pixels, {MOST_PIXELS} are the most")
            picture.load()
        except (*BROKEN, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"{file} in {self.path} cannot be decoded ({error}); get the file again") from error
        return picture


def read(data: Path) -> Archive:
    """Everything that lies beside `splits.json`, from a tar or from a folder.

    Raises:
        FileNotFoundError: If nothing is there, or no `splits.json` is inside.
        ValueError: If it is no tar, or if a member's name would leave the folder it is unpacked into.
    """
    if not data.exists():
        raise FileNotFoundError(f"data: {data} does not exist; {REMEDY}")
    members = _from_folder(data) if data.is_dir() else _from_tar(data)
    roots = [PurePosixPath(name).parent for name in members if PurePosixPath(name).name == "splits.json"]
    if len(roots) != 1:
        raise FileNotFoundError(f"data: {data} holds {len(roots)} files called splits.json, one is needed; {REMEDY}")
    inside = {PurePosixPath(name): content for name, content in members.items()}
    return Archive(
        data,
        {str(p.relative_to(roots[0])): content for p, content in inside.items() if p.is_relative_to(roots[0])},
    )


def _from_tar(data: Path) -> dict[str, bytes]:
    members = {}
    left = data.stat().st_size
    try:
        with tarfile.open(data, "r:") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise ValueError(f"data: {data} names a member {member.name!r}, outside its own folder; {REMEDY}")
                # Links and devices have no bytes of their own: a picture stored as one counts as missing.
                if member.isreg() and (file := tar.extractfile(member)):
                    left -= member.size
                    if member.issparse() or left < 0:
                        raise ValueError(
                            f"data: {data} tells of more bytes than it has, at {member.name!r}: its files are sparse; {REMEDY}"
                        )
                    members[member.name] = file.read()
    except (tarfile.TarError, *_OF_TARS) as error:
        if isinstance(error, ValueError) and str(error).startswith("data: "):
            raise
        raise ValueError(f"data: {data} is no readable tar ({error}); {REMEDY}") from error
    return members


def _names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list):
        raise TypeError(f"{names!r:.40} is no list")
    return tuple(map(str, names))


def _from_folder(data: Path) -> dict[str, bytes]:
    wanted = [*data.rglob("splits.json"), *data.rglob("images/*.jpg"), *data.rglob("instances/*.png")]
    return {path.relative_to(data).as_posix(): path.read_bytes() for path in wanted}
