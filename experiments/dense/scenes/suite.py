"""The benchmark `scenes`: the four tasks of NYUD-v2 on rendered rooms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from experiments.dense.losses import balanced_edge_loss, depth_loss, normals_loss, segmentation_loss
from experiments.dense.scenes.rendering import VERSION, Scenes, render
from experiments.dense.scenes.solids import Label
from experiments.dense.suite import Split, Suite, Task
from experiments.runner.cache import cached

SplitName = Literal["pretrain", "train", "test", "val"]
SPLITS: tuple[SplitName, ...] = ("pretrain", "train", "test")
_SEED_OF_VAL = 1_000_000  # far from the seeds of the other splits
_PORTION = 32  # scenes rendered between two reports of progress


def suite(
    *,
    size: int = 64,
    pretrain: int = 2000,
    train: int = 1000,
    test: int = 400,
    val: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Suite:
    """The benchmark, rendered on first use and read from the cache afterwards.

    Args:
        size: Height and width of the images, in pixels.
        pretrain: Scenes on which the shared trunk is trained before; with 0 those of `train` stand in their place.
        train: Scenes on which every row trains.
        test: Scenes on which every row is measured.
        val: Scenes on which settings are chosen.
        seed: Whole number; suites of different seeds share no scene, nor do the splits of one.
        progress: Called with the number of scenes made so far and in all; a split in the cache counts at once.
    """
    counts: dict[SplitName, int] = {
        split: count for split, count in zip(SPLITS, (pretrain, train, test), strict=True) if count
    }
    splits, done, total = {}, 0, sum(counts.values())
    for split, count in counts.items():
        advance = None if progress is None else _offset(progress, done, total)
        splits[split] = render_split(split, count, size=size, seed=seed, progress=advance)
        done += count
        if progress is not None:
            progress(done, total)
    chosen_on = render_split("val", val, size=size, seed=seed) if val else None
    return Suite(
        "scenes", _tasks(), splits.get("pretrain", splits["train"]), splits["train"], splits["test"], val=chosen_on
    )


def render_split(
    split: SplitName,
    count: int,
    *,
    size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Split:
    """One split of the benchmark, from the cache where it has been rendered before.

    Args:
        split: Which one.
        count: How many scenes.
        size: Height and width of the images, in pixels.
        seed: As in `suite`.
        progress: Called with the number of scenes made so far.
    """
    own_seed = _SEED_OF_VAL + seed if split == "val" else len(SPLITS) * seed + SPLITS.index(split)
    tensors = cached(f"scenes/v{VERSION}-seed{own_seed}-{count}x{size}", lambda: _make(own_seed, count, size, progress))
    return Split(tensors.pop("image"), tensors)


def _tasks() -> tuple[Task, ...]:
    from dtme.metrics import DepthRMSE, MeanAngularError, MeanIoU, OptimalDatasetF

    classes = len(Label)
    return (
        Task("semseg", classes, segmentation_loss, lambda: MeanIoU(classes), "mIoU", "labels"),
        Task("depth", 1, depth_loss, DepthRMSE, "RMSE (m)", "depth"),
        Task("normals", 3, normals_loss, MeanAngularError, "mErr (°)", "normals"),
        Task("edges", 1, balanced_edge_loss, OptimalDatasetF, "odsF", "edges"),
    )


def _make(seed: int, count: int, size: int, advance: Callable[[int], None] | None) -> dict[str, Tensor]:
    portions = []
    for start in range(0, count, _PORTION):
        portions.append(_compact(render(seed, min(_PORTION, count - start), size, start=start)))
        if advance is not None:
            advance(min(start + _PORTION, count))
    return {name: torch.cat([portion[name] for portion in portions]) for name in portions[0]}


def _compact(scenes: Scenes) -> dict[str, Tensor]:
    """Image and targets in the smallest types that hold them."""
    return {
        "image": scenes.rgb,
        "semseg": scenes.semseg,
        "depth": scenes.depth.half(),
        "normals": scenes.normals.half(),
        "edges": scenes.edges.to(torch.uint8),
    }


def _offset(progress: Callable[[int, int], None], done: int, total: int) -> Callable[[int], None]:
    return lambda made: progress(done + made, total)
