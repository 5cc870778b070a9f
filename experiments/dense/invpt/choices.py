"""The choices that NYUD-v2 and PASCAL-Context share, and the transforms that they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experiments.dense.datasets.dataset import Transform
from experiments.dense.invpt.losses import LossWeights
from experiments.dense.transforms.colour import HALF, IMAGENET
from experiments.dense.transforms.geometry import Kinds
from experiments.dense.transforms.invpt import PadOnly, ScaleCropFlip
from experiments.dense.transforms.turned import FixedResize, TurnZoomFlip


@dataclass(frozen=True)
class Choices:
    """What the paper leaves open or the field does in more than one way; the defaults are InvPT's.

    Attributes:
        tasks: Some of the suite's tasks; by default all.
        loss_weights: `invpt`: 1 for semseg and depth, 2 parts, 5 saliency, 10 normals, 50 edges; `ones`: all 1.
        edge_weight: Of edge pixels in the loss of edges; the rest weigh 1 minus it. ASTMT and ATRC take 0.8 on NYUD-v2.
        normals_over: Whether the loss of normals is a mean over `pixels` or, a third of it, over their `elements`.
        augmentation: `invpt`: scale, crop, flip, colours, padded to one size; `mti`: turn, zoom, flip, resized to one size.
        crop_by: `semseg`: crops are drawn anew while one class has three quarters of them; `chance`: they are not.
        size: Height and width that a model is given; by default the paper's.
        normalisation: Mean and deviation of channels: `imagenet`, as in the field; `half`, which timm's augreg weights expect.
        meters: How all but edges is measured, as of `dtme.metrics`: `standard`, soundly; `invpt`, as published tables count.
        edge_protocol: How edges are measured: `standard`, or `invpt`, with non-maxima suppressed and at 101 thresholds, on the
            rims of the stored edges.
        missing: A target that is not there is an error, or is left out (`leave_out`) and its image labelled in part.
        unreadable: A file that cannot be decoded is an error, or is skipped (`skip`) and counted.
    """

    tasks: tuple[str, ...] | None = None
    loss_weights: LossWeights = "invpt"
    edge_weight: float = 0.95
    normals_over: Literal["pixels", "elements"] = "pixels"
    augmentation: Literal["invpt", "mti"] = "invpt"
    crop_by: Literal["semseg", "chance"] = "semseg"
    size: tuple[int, int] | None = None
    normalisation: Literal["imagenet", "half"] = "imagenet"
    meters: Literal["standard", "invpt"] = "standard"
    edge_protocol: Literal["standard", "invpt"] = "standard"
    missing: Literal["error", "leave_out"] = "error"
    unreadable: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        if not 0 < self.edge_weight < 1:
            raise ValueError(f"edge_weight={self.edge_weight}: give the share of edge pixels, between 0 and 1.")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size={self.size}: give height and width in pixels.")


def transforms_of(
    choices: Choices,
    kinds: Kinds,
    size: tuple[int, int],
    *,
    need_foreground: tuple[str, ...] = (),
    angle: float = 20.0,
    zooms: tuple[float, ...] = (0.75, 1.25),
) -> tuple[Transform, Transform]:
    """What is done to images that rows train on, and to those they are measured on.

    Args:
        choices: Which augmentation, and how.
        kinds: Of the targets.
        size: Height and width that come out.
        need_foreground: As of `PadOnly`.
        angle: As of `TurnZoomFlip`.
        zooms: As of `TurnZoomFlip`.
    """
    normalisation = IMAGENET if choices.normalisation == "imagenet" else HALF
    if choices.augmentation == "invpt":
        return (
            ScaleCropFlip(kinds, size, normalisation, need_foreground, crop_by=choices.crop_by),
            PadOnly(kinds, size, normalisation, need_foreground),
        )
    return (
        TurnZoomFlip(kinds, size, normalisation, need_foreground, angle=angle, zooms=zooms),
        FixedResize(kinds, size, normalisation, need_foreground),
    )
