"""Eighteen real images of NYUv2 with all that is known of them, written in the forms that suites read.

python tests/experiments/dense/nyu18.py nyuv2_sample18.tar FOLDER  # FOLDER/nyud and FOLDER/nyud13, to run suites on
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
from nyud_copies import lists, npy, png
from PIL import Image

TAR = Path(__file__).parents[4] / "shared" / "data" / "nyuv2_sample18.tar"
INNER = np.s_[45:470, 40:600]


class Sample18:
    """The tar in memory: photographs, depth in metres, normals that follow from it, and labels of 13 classes for some."""

    def __init__(self, path: Path = TAR) -> None:
        with tarfile.open(path) as tar:
            held = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
            self.files = {name.partition("/")[2]: file.read() for name, file in held.items() if file}
        facts = json.loads(self.files["splits.json"])
        names = sorted(f"{number:04d}" for split in ("train", "test") for number in facts[split])
        # By turns, as all those with labels are official test images, and a task without training labels is refused.
        self.train, self.test = tuple(names[::2]), tuple(names[1::2])
        self.focus = facts["fx_fy_cx_cy"]

    def image(self, name: str) -> np.ndarray:
        return self._decoded(f"rgb/{name}.jpg")

    def depth(self, name: str) -> np.ndarray:
        return (self._decoded(f"depth_mm/{name}.png") / np.float32(1000)).astype(np.float32)

    def labels(self, name: str) -> np.ndarray | None:
        """0 where unknown, 1 to 13."""
        file = f"seg13/{name}.png"
        return self._decoded(file) if file in self.files else None

    def normals(self, name: str) -> np.ndarray:
        """Unit vectors (h, w, 3), x to the right, y down, towards the camera; zero where depth is unknown."""
        depth, (fx, fy, cx, cy) = self.depth(name).astype(np.float64), self.focus
        rows, columns = np.indices(depth.shape)
        points = np.stack([(columns - cx) / fx * depth, (rows - cy) / fy * depth, depth], -1)
        across, down = np.gradient(points, axis=1), np.gradient(points, axis=0)
        normals = np.cross(down, across)
        length = np.linalg.norm(normals, axis=2, keepdims=True)
        known = (length > 0) & (depth[..., None] > 0)
        return np.where(known, normals / np.where(known, length, 1), 0).astype(np.float32)

    def edges(self, name: str) -> np.ndarray | None:
        """1 where a label differs from its neighbour's to the right or below."""
        labels = self.labels(name)
        if labels is None:
            return None
        edges = np.zeros(labels.shape, np.uint8)
        edges[:, :-1] |= labels[:, 1:] != labels[:, :-1]
        edges[:-1] |= labels[1:] != labels[:-1]
        return edges

    def _decoded(self, file: str) -> np.ndarray:
        return np.array(Image.open(io.BytesIO(self.files[file])))


def as_nyud(root: Path, sample: Sample18, *, labels: bool = False) -> Path:
    """In the layout of the paper, cropped to 425 x 560; edges, and on request labels, for those that have them."""
    lists(root, sample.train, sample.test)
    for name in (*sample.train, *sample.test):
        png(root / f"images/{name}.png", sample.image(name)[INNER])
        npy(root / f"depth/{name}.npy", sample.depth(name)[INNER])
        png(root / f"normals/{name}.png", ((sample.normals(name)[INNER] + 1) * 127.5).round().astype(np.uint8))
        edges, classes = sample.edges(name), sample.labels(name)
        if edges is not None and classes is not None:
            png(root / f"edge/{name}.png", edges[INNER] * 255)
            if labels:
                png(root / f"segmentation/{name}.png", classes[INNER])
    return root


def as_nyud13(root: Path, sample: Sample18) -> Path:
    """In the folders of MTAN at 288 x 384; labels for those that have them."""
    rows, columns = (np.arange(count) * whole // count for count, whole in ((288, 480), (384, 640)))
    take = np.ix_(rows, columns)
    for split, names in (("train", sample.train), ("val", sample.test)):
        for number, name in enumerate(names):
            npy(root / f"{split}/image/{number}.npy", sample.image(name)[take] / np.float32(255))
            npy(root / f"{split}/depth/{number}.npy", sample.depth(name)[take][..., None])
            npy(root / f"{split}/normal/{number}.npy", sample.normals(name)[take])
            classes = sample.labels(name)
            if classes is not None:
                npy(root / f"{split}/label/{number}.npy", classes[take].astype(np.int64) - 1)
    return root


if __name__ == "__main__":
    sample, folder = Sample18(Path(sys.argv[1])), Path(sys.argv[2])
    as_nyud(folder / "nyud", sample)
    as_nyud13(folder / "nyud13", sample)
