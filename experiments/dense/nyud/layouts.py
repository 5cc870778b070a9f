"""Which layout of NYUD-v2 a folder holds, told by what its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.headers import read_header
from experiments.dense.datasets.lists import check_apart, read_ids
from experiments.dense.datasets.maps import (
    read_classes_mat,
    read_classes_png,
    read_depth_mat,
    read_depth_npy,
    read_edges_npy,
    read_edges_png,
    read_normals_npy,
    read_normals_picture,
)
from experiments.dense.datasets.pictures import read_rgb
from experiments.dense.datasets.reader import FolderReader, Reader, Stored
from experiments.dense.datasets.roots import find, folders_of, suffixes_in
from experiments.dense.nyud.labeled_mat import LabeledMat, is_labeled_mat

Border = Literal["keep", "crop"]

CROPPED, FULL = (425, 560), (480, 640)
INNER = (45, 40, *CROPPED)
"""Rows 46 to 470 and columns 41 to 600, counted from 1: what the boundary literature keeps of 480 x 640."""

FOLDERS = {"image": "images", "semseg": "segmentation", "depth": "depth", "normals": "normals", "edges": "edge"}


@dataclass(frozen=True)
class Layout:
    """One way to store NYUD-v2 in files.

    Attributes:
        name: As tables print it.
        suffixes: Of the files of each map.
        size: Of its images.
        origin: Where the field gets it.
    """

    name: str
    suffixes: Mapping[str, str]
    size: tuple[int, int]
    origin: str


LAYOUTS = (
    Layout(
        "NYUDv2 (ATRC 2021, InvPT, TaskPrompter): PNG, 425 x 560",
        {"image": ".png", "semseg": ".png", "depth": ".npy", "normals": ".png", "edges": ".png"},
        CROPPED,
        "NYUDv2.tar.gz, linked in the README of prismformore/Multi-Task-Transformer",
    ),
    Layout(
        "NYUD_MT (MTI-Net, MTLoRA): JPEG and NumPy, 480 x 640",
        {"image": ".jpg", "semseg": ".png", "depth": ".npy", "normals": ".npy", "edges": ".npy"},
        FULL,
        "NYUD_MT.tgz, linked in the README of SimonVandenhende/Multi-Task-Learning-PyTorch",
    ),
    Layout(
        "NYUD_MT (ASTMT): JPEG and MATLAB, 480 x 640",
        {"image": ".jpg", "semseg": ".mat", "depth": ".mat", "normals": ".jpg", "edges": ".png"},
        FULL,
        "NYUD_MT.tgz of facebookresearch/astmt, whose server is gone",
    ),
)

SOURCES = "; ".join(f"{layout.name}: {layout.origin}" for layout in LAYOUTS) + (
    "; nyu_depth_v2_labeled.mat (semseg and depth alone): the page of NYU Depth V2 of Nathan Silberman"
)


def open_nyud(data: Path, *, border: Border = "keep", gray_normals: Literal["known", "unknown"] = "known") -> Reader:
    """The reader of the NYUD-v2 that lies in a folder.

    Args:
        data: Its folder, the folder right around it, or the official `nyu_depth_v2_labeled.mat` or the folder that it is in.
        border: `"crop"` keeps the inner 425 x 560 of images of 480 x 640.
        gray_normals: `"unknown"`: a pixel of a picture of normals that stands for a vector shorter than 1/2, as gray does, is
            unknown; `"known"`: it counts, as in the readers of the field.

    Raises:
        DataError: There is nothing, something else, or something that is none of the layouts.
    """
    if is_labeled_mat(data):
        return LabeledMat.of(data, INNER if border == "crop" else None)
    if archive := next(
        (path for folder in folders_of(data) for path in folder.glob("*.mat") if is_labeled_mat(path)), None
    ):
        return LabeledMat.of(archive, INNER if border == "crop" else None)
    _refuse_13_classes(data)
    found = find(data, lambda folder: _in(folder, border, gray_normals))
    if found is None:
        raise DataError(
            f"data={str(data)!r} holds no folder images/ beside gt_sets/, and no nyu_depth_v2_labeled.mat: "
            f"it is no NYUD-v2. The field gets it here: {SOURCES}.",
            data,
        )
    return found


def _in(folder: Path, border: Border, gray_normals: str) -> FolderReader | None:
    if not (folder / "images").is_dir():
        return None
    layout = _layout_of(folder)
    suffixes = {of: suffix for of, suffix in layout.suffixes.items() if (folder / FOLDERS[of]).is_dir()}
    shortest = 0.5 if gray_normals == "unknown" else 0.0
    decoders = {
        ("image", ".png"): partial(read_rgb, encoded="PNG"),
        ("image", ".jpg"): partial(read_rgb, encoded="JPEG"),
        ("semseg", ".png"): partial(read_classes_png, highest=40, zero="unknown"),
        ("semseg", ".mat"): partial(read_classes_mat, key="segmentation", highest=40, zero="unknown"),
        ("depth", ".npy"): read_depth_npy,
        ("depth", ".mat"): read_depth_mat,
        ("normals", ".png"): partial(read_normals_picture, encoded="PNG", shortest=shortest),
        ("normals", ".jpg"): partial(read_normals_picture, encoded="JPEG", shortest=shortest),
        ("normals", ".npy"): read_normals_npy,
        ("edges", ".png"): read_edges_png,
        ("edges", ".npy"): read_edges_npy,
    }
    stored = {of: Stored(FOLDERS[of], suffix, decoders[of, suffix]) for of, suffix in suffixes.items()}
    splits = {"train": read_ids(folder / "gt_sets/train.txt"), "test": read_ids(folder / "gt_sets/val.txt")}
    check_apart(splits, folder)
    _check_size(folder, layout, border)
    return FolderReader(layout.name, folder, splits, stored, INNER if border == "crop" else None)


def _layout_of(folder: Path) -> Layout:
    """The one layout whose kinds of files are those in the folder, as far as its folders are there."""
    kinds = {of: suffixes_in(folder / name) for of, name in FOLDERS.items()}
    most = {of: max(counts, key=lambda suffix: counts[suffix]) for of, counts in kinds.items() if counts}
    fitting = [layout for layout in LAYOUTS if all(layout.suffixes[of] == suffix for of, suffix in most.items())]
    if "image" in most and fitting:
        return fitting[0]
    held = ", ".join(f"{FOLDERS[of]}/ of {suffix}" for of, suffix in most.items()) or "no files"
    raise DataError(
        f"{folder} holds {held}, which is none of the layouts of NYUD-v2: {SOURCES}. Do not mix files of several.",
        folder,
    )


def _check_size(folder: Path, layout: Layout, border: Border) -> None:
    first = next(
        (path for path in sorted((folder / "images").iterdir()) if path.suffix == layout.suffixes["image"]), None
    )
    size = None if first is None else read_header(first).size
    if size == FULL and layout.size == CROPPED and border == "keep":
        raise DataError(
            f"{first} is 480 x 640 where 425 x 560 is meant, as in every PNG copy of NYUD-v2 that published numbers stand on: "
            "padded to 448 x 576 it does not fit. Get NYUDv2.tar.gz, or pass border='crop' for its inner 425 x 560.",
            first,
        )
    if border == "crop" and size != FULL:
        raise DataError(f"{first} is {size}, but border='crop' is for 480 x 640. Pass border='keep'.", first)


def _refuse_13_classes(data: Path) -> None:
    for folder in folders_of(data):
        if (folder / "train/image").is_dir() or any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")):
            raise DataError(
                f"{folder} looks like the 13 classes at 288 x 384 of MTAN, a benchmark of its own whose numbers say nothing "
                "about NYUD-v2 with 40 classes: its suite is nyud13.",
                folder,
            )
