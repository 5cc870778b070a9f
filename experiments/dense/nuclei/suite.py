"""The benchmark on real microscopy: one archive of pictures becomes three splits of tiles with four targets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.dense.losses import balanced_edge_loss, mask_loss, regression_loss
from experiments.dense.nuclei import archive, targets, tiles
from experiments.dense.nuclei.archive import Archive
from experiments.dense.suite import Split, Suite, Task
from experiments.runner.cache import cached

VERSION = 2
"""Raised when the same archive gives other tensors than before, so that no old cache is read."""

PRETRAIN_SHARE = 0.25
"""Part of the archive's training pictures on which only the shared trunk is trained."""


def suite(data: Path, *, size: int = 64, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> Suite:
    """Nuclei: mask, boundary, horizontal and vertical distance maps, as HoVer-Net learns them together.

    The archive divides its pictures into `train`, `val` and `test`, all three of the same kinds of microscopy. Its
    `test` is the suite's test; on its `val` settings are chosen; its `train` is divided, by picture, into pretrain and
    train.

    Args:
        data: `dsb2018_nuclei.tar`, or the folder it unpacks to.
        size: Side of the square tiles in pixels, 16 to 128; each covers 128 x 128 pixels of its picture.
        seed: Decides which training pictures go to pretrain.
        progress: Called with the number of pictures done and the number of all, unless the tiles are in the cache.

    Raises:
        FileNotFoundError: If the data is not there.
        ValueError: If `size` is out of range, or a file is not what it should be; names the file.
    """
    from dtme.metrics import OptimalDatasetF
    from experiments.dense.nuclei.metrics import DistanceRMSE, MaskDice  # torchmetrics stays optional

    if not 16 <= size <= tiles.FIELD:
        raise ValueError(f"size must be between 16 and {tiles.FIELD}, as pictures are never enlarged, not {size}")
    pictures = archive.read(Path(data))
    key = f"nuclei/v{VERSION}-seed{seed}-{size}-{pictures.digest()[:16]}"
    tensors = cached(key, lambda: _tensors(pictures, size, seed, progress or (lambda done, total: None)))
    pretrain, train, test, val = (_split(tensors, split) for split in ("pretrain", "train", "test", "val"))
    tasks = (
        Task("mask", 1, mask_loss, MaskDice, "Dice", "edges"),
        Task("boundary", 1, balanced_edge_loss, OptimalDatasetF, "odsF", "edges"),
        Task("horizontal", 1, regression_loss, DistanceRMSE, "RMSE", "signed"),
        Task("vertical", 1, regression_loss, DistanceRMSE, "RMSE", "signed"),
    )
    return Suite("nuclei", tasks, pretrain, train, test, val)


def divide(names: Sequence[str], seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A quarter for pretrain and the rest for train: those come first whose name, with the seed, has the lowest hash.

    >>> divide(["a", "b", "c", "d"], seed=0)
    (('d',), ('a', 'b', 'c'))
    """
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    count = round(len(ranked) * PRETRAIN_SHARE)
    return tuple(sorted(ranked[:count])), tuple(sorted(ranked[count:]))


def _tensors(pictures: Archive, size: int, seed: int, progress: Callable[[int, int], None]) -> dict[str, Tensor]:
    """All splits, as `SPLIT.image` and `SPLIT.TASK`."""
    splits = pictures.splits()
    pretrain, train = divide(splits["train"], seed)
    if not pretrain:
        raise ValueError(
            f"splits.json in {pictures.path} names {len(train)} training pictures, too few to spare a quarter; "
            "name at least 3"
        )
    members = {"pretrain": pretrain, "train": train, "test": splits["test"], "val": splits["val"]}
    done, total = 0, sum(map(len, members.values()))
    tensors = {}
    for split, names in members.items():
        parts = []
        for name in names:
            parts.append(_tiles(pictures, name, size))
            progress(done := done + 1, total)
        for kind in parts[0]:
            tensors[f"{split}.{kind}"] = torch.from_numpy(np.concatenate([part[kind] for part in parts]))
    return tensors


def _tiles(pictures: Archive, name: str, size: int) -> dict[str, np.ndarray]:
    """The tiles of one picture with their targets, each `(n, ...)`.

    The picture is scaled first and cut last, so targets are exact at the tiles' resolution and a nucleus that a tile
    cuts off keeps its true centre.
    """
    image, instances = pictures.picture(name)
    if min(instances.shape) < tiles.FIELD:
        raise ValueError(
            f"images/{name}.jpg in {pictures.path} is {' x '.join(map(str, instances.shape))}, smaller than the "
            f"{tiles.FIELD} x {tiles.FIELD} that a tile covers; take it out of splits.json"
        )
    image, instances = tiles.scale(image, instances, size)
    horizontal, vertical = targets.distance_maps(instances)
    whole = {
        "image": tiles.stretch(image),
        "mask": targets.mask(instances),
        "boundary": targets.boundary(instances),
        "horizontal": horizontal.astype(np.float16),
        "vertical": vertical.astype(np.float16),
    }
    height, width = instances.shape
    corners = tiles.corners(height, width, size)
    cut = {kind: tiles.cut(picture, corners, size) for kind, picture in whole.items()}
    return {**cut, "image": cut["image"].transpose(0, 3, 1, 2)}


def _split(tensors: dict[str, Tensor], split: str) -> Split:
    of = {key.removeprefix(f"{split}."): value for key, value in tensors.items() if key.startswith(f"{split}.")}
    return Split(of.pop("image"), of)
