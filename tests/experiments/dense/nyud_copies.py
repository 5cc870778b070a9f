"""Small copies of NYUD-v2 in every layout it comes in, of images that differ in every pixel that matters."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image

TRAIN, TEST = ("0003", "0004"), ("0001", "0002")
NAMES = (*TEST, *TRAIN)


def maps(name: str, height: int = 42, width: int = 56) -> dict[str, np.ndarray]:
    """What is known of an image, as a reader should give it; arrays (h, w) or (h, w, 3)."""
    rng = np.random.default_rng(int(name))
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = rng.integers(0, 41, (height, width)).astype(np.uint8)  # stored: 0 unknown, 1 to 40
    labels[0, :3] = (0, 1, 40)
    depth = rng.uniform(0.5, 10, (height, width)).astype(np.float32)
    depth[1, 2] = 0
    normals = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    normals[0, 0] = (128, 128, 255)
    edges = (rng.random((height, width)) < 0.1).astype(np.uint8)
    return {"image": image, "labels": labels, "depth": depth, "normals8": normals, "edges": edges}


def unit(normals8: np.ndarray) -> np.ndarray:
    vectors = normals8.astype(np.float32) * 2 / 255 - 1
    return (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float32)


def png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")


def jpeg(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "JPEG", quality=95)


def npy(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # under this very name
        np.save(file, values)


def mat(path: Path, **variables: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables, do_compression=True)


def lists(root: Path, train: tuple[str, ...] = TRAIN, test: tuple[str, ...] = TEST) -> None:
    (root / "gt_sets").mkdir(parents=True, exist_ok=True)
    (root / "gt_sets/train.txt").write_text("".join(f"{name}\n" for name in train))
    (root / "gt_sets/val.txt").write_text("".join(f"{name}\n" for name in test))


def invpt_copy(root: Path, height: int = 42, width: int = 56, names: tuple[str, ...] = NAMES) -> Path:
    lists(root)
    for name in names:
        of = maps(name, height, width)
        png(root / f"images/{name}.png", of["image"])
        png(root / f"segmentation/{name}.png", of["labels"])
        npy(root / f"depth/{name}.npy", of["depth"])
        png(root / f"normals/{name}.png", of["normals8"])
        png(root / f"edge/{name}.png", of["edges"] * 255)
    return root


def mti_copy(root: Path, height: int = 48, width: int = 64) -> Path:
    lists(root)
    for name in NAMES:
        of = maps(name, height, width)
        jpeg(root / f"images/{name}.jpg", of["image"])
        png(root / f"segmentation/{name}.png", of["labels"])
        npy(root / f"depth/{name}.npy", of["depth"].astype(np.float64)[..., None])
        normals = unit(of["normals8"])
        normals[2, 3] = 0
        npy(root / f"normals/{name}.npy", normals)
        npy(root / f"edge/{name}.npy", of["edges"].astype(np.float32))
    return root


def astmt_copy(root: Path, height: int = 48, width: int = 64) -> Path:
    lists(root)
    for name in NAMES:
        of = maps(name, height, width)
        jpeg(root / f"images/{name}.jpg", of["image"])
        mat(root / f"segmentation/{name}.mat", segmentation=of["labels"])
        mat(root / f"depth/{name}.mat", depth=of["depth"])
        jpeg(root / f"normals/{name}.jpg", of["normals8"])
        png(root / f"edge/{name}.png", of["edges"] * 255)
    return root


def labeled_mat(root: Path, height: int = 48, width: int = 64) -> Path:
    """The official file with three images, axes reversed as MATLAB's are, and the two small files beside it."""
    root.mkdir(parents=True, exist_ok=True)
    every = [maps(name, height, width) for name in ("0001", "0002", "0003")]
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = np.stack([of["image"].transpose(2, 1, 0) for of in every])
        file["depths"] = np.stack([of["depth"].T for of in every])
        file["rawDepths"] = np.stack([of["depth"].T for of in every])
        file["labels"] = np.stack([of["labels"].T.astype(np.uint16) * 20 for of in every])  # 0 to 800
    mat(root / "splits.mat", trainNdxs=np.array([[1], [3]], np.uint16), testNdxs=np.array([[2]], np.uint16))
    return root / "nyu_depth_v2_labeled.mat"
