"""The folder that PASCAL-Context with five tasks comes as, under whatever name."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.headers import read_header
from experiments.dense.datasets.lists import check_apart, read_ids
from experiments.dense.datasets.maps import read_classes_png, read_normals_picture, read_saliency_png
from experiments.dense.datasets.pictures import read_rgb
from experiments.dense.datasets.reader import IMAGE, FolderReader, Stored
from experiments.dense.datasets.roots import find
from experiments.dense.pascal_context.official import CLASSES, normals_count
from experiments.dense.pascal_context.targets import read_contexts, read_edges, read_parts, read_regions

LAYOUT = "PASCALContext (ASTMT, MTI-Net, ATRC, InvPT): JPEG with distilled normals and saliency"

SOURCES = (
    "PASCALContext.tar.gz, linked in the README of prismformore/Multi-Task-Transformer, or PASCAL_MT.tgz in that of "
    "SimonVandenhende/Multi-Task-Learning-PyTorch"
)

REGIONS = "regions"
_PICTURES, _CONTEXTS = "JPEGImages", "pascal-context/trainval"


class PascalReader(FolderReader):
    """One file for each image and map; parts also need the picture's size, and normals the classes beside them.

    Besides the tasks there is `"regions"`, what edges are measured on by the boundary benchmark.
    """

    @property
    def tasks(self) -> tuple[str, ...]:
        """As of `Reader`."""
        return tuple(task for task in super().tasks if task != REGIONS)

    def read(self, name: str, of: str) -> Tensor:
        """As of `Reader`; a normal on a class of things that NYUD-v2 does not know is unknown."""
        if of == "parts" and self.has(name, of):
            return self._parts(name)
        stored = super().read(name, of)
        if of != "normals":
            return stored
        path = self.root / _CONTEXTS / f"{name}.mat"
        contexts = read_contexts(path)
        if contexts.shape != tuple(stored.shape[1:]):
            raise DataError(f"{path} is {contexts.shape}, but its normals are {tuple(stored.shape[1:])}.", path)
        return stored * torch.from_numpy(_normals_count()[contexts])

    def _parts(self, name: str) -> Tensor:
        size = read_header(self.place(name, IMAGE)).size
        assert size is not None  # a JPEG says it
        return read_parts(self.place(name, "parts"), size)


_normals_count = cache(normals_count)


def open_pascal(data: Path) -> PascalReader:
    """The reader of the PASCAL-Context that lies in a folder, or in the one right inside it.

    Raises:
        DataError: There is nothing, or something else.
    """
    found = find(data, _in)
    if found is None:
        raise DataError(
            f"data={str(data)!r} holds no JPEGImages/ beside ImageSets/Context/: it is no PASCAL-Context. "
            f"The field gets it here: {SOURCES}.",
            data,
        )
    return found


def _in(folder: Path) -> PascalReader | None:
    lists = folder / "ImageSets/Context"
    if not (folder / _PICTURES).is_dir() or not lists.is_dir():
        return None
    classes = partial(read_classes_png, highest=len(CLASSES) - 1, zero="background")
    voc = ("semseg/VOC12", ".png") if (folder / "semseg/VOC12").is_dir() else None
    offered = {
        "semseg": Stored("semseg/pascal-context", ".png", classes, instead=voc),
        "parts": Stored("human_parts", ".mat", _never),
        "saliency": Stored("sal_distill", ".png", read_saliency_png),
        "normals": Stored("normals_distill", ".png", partial(read_normals_picture, encoded="PNG")),
        "edges": Stored(_CONTEXTS, ".mat", read_edges),
    }
    stored = {IMAGE: Stored(_PICTURES, ".jpg", partial(read_rgb, encoded="JPEG"))}
    for task, how in offered.items():
        needed = [how.folder, _CONTEXTS] if task == "normals" else [how.folder]
        if all((folder / each).is_dir() for each in needed) or (task == "semseg" and voc):
            stored[task] = how
    if "edges" in stored:
        stored[REGIONS] = Stored(_CONTEXTS, ".mat", read_regions)
    splits = {"train": read_ids(lists / "train.txt"), "test": read_ids(lists / "val.txt")}
    check_apart(splits, folder)
    return PascalReader(LAYOUT, folder, splits, stored)


def _never(path: Path) -> Tensor:
    raise AssertionError(f"parts in {path} are read with the size of their picture")
