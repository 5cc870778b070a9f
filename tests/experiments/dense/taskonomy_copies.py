"""A small Taskonomy in each of the forms of a download, in the very formats of its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nyud_copies import png

BUILDINGS = {"train": ("hanson", "merom"), "val": ("wiconisco",), "test": ("ihlen",)}
VIEWS = ((0, 0), (2, 1), (10, 0))
SIZE = (64, 64)
SIXTEEN = {"depth_euclidean": 9000, "depth_zbuffer": 8000, "edge_occlusion": 3266, "edge_texture": 7299} | {
    "keypoints2d": 933,
    "keypoints3d": 55796,
}
"""The highest values that were seen in each, holes apart."""
DOMAINS = ("rgb", *SIXTEEN, "normal", "principal_curvature", "reshading", "segment_unsup2d", "segment_unsup25d")


def hole(building: str, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Where the scan knows nothing: a block of 4 x 4."""
    where = np.zeros(size, bool)
    where[8:12, 16:20] = True
    return where


def stored(domain: str, building: str, point: int, view: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    seed = [sum(map(ord, domain + building)), point, view]
    rng = np.random.default_rng(seed)
    if domain in SIXTEEN:
        values = rng.integers(300, SIXTEEN[domain] + 1, size).astype(np.uint16)
        if domain.startswith("depth"):
            values[hole(building, size)] = 65535
        return values
    if domain.startswith("segment"):
        return np.repeat(np.repeat(rng.integers(0, 60, (size[0] // 8, size[1] // 8)), 8, 0), 8, 1).astype(np.uint8)
    colours = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    if domain == "principal_curvature":
        colours[..., 2] = 0
    if domain == "reshading":
        colours[:] = colours[..., :1]
    return colours


def path_of(root: Path, form: str, domain: str, building: str, point: int, view: int) -> Path:
    name = f"point_{point}_view_{view}_domain_{domain}.png"
    return {
        "omnidata": root / domain / "taskonomy" / building / name,
        "buildings": root / domain / building / name,
        "flat": root / domain / f"{building}_{name}",
    }[form]


def splits_csv(path: Path, buildings: dict[str, tuple[str, ...]] = BUILDINGS, end: str = "\r") -> None:
    lines = ["id,train,val,test"]
    for place, split in enumerate(("train", "val", "test")):
        flags = ["0", "0", "0"]
        flags[place] = "1"
        lines += [",".join([name, *flags]) for name in buildings[split]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode())


def taskonomy_copy(
    root: Path, form: str = "omnidata", domains: tuple[str, ...] = DOMAINS, size: tuple[int, int] = SIZE
) -> Path:
    for names in BUILDINGS.values():
        for building in names:
            for domain in domains:
                for point, view in VIEWS:
                    png(path_of(root, form, domain, building, point, view), stored(domain, building, point, view, size))
    splits_csv(root / "splits_taskonomy/train_val_test_tiny.csv")
    return root
