"""F-measure of edges at the threshold that is best for the whole data set (odsF)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dtme._shapes import Bool, Float, Int, Shaped
from dtme.metrics._checks import binary, increasing, one_channel
from dtme.metrics._meter import Meter, Protocol
from dtme.metrics.f_measure import best_f

Truth = Literal["edges", "regions"]

_THRESHOLDS: dict[Protocol, tuple[float, ...]] = {
    "standard": tuple(k / 20 for k in range(1, 20)),
    "invpt": (0.001, *(k / 100 for k in range(1, 100)), 0.999),
}


class OptimalDatasetF(Meter):
    r"""F-measure of edges at the one threshold that is best for the whole data set, in per cent.

    $$ \max_t \; 100 \, \frac{2 P_t R_t}{P_t + R_t} = \max_t \; 100 \, \frac{2 M_t}{\hat E_t + E} $$

    with $E$ true and $\hat E_t$ predicted edge pixels and $M_t$ one-to-one matches between them, summed over the data
    set. The procedure is that of the Berkeley boundary benchmark (Arbelaez et al., "Contour detection and
    hierarchical image segmentation", TPAMI 2011): at each threshold the probabilities are cut, what remains is
    thinned to lines one pixel wide, and predicted pixels are matched with true ones not further away than a
    tolerance, each pixel at most once and as many as can be. It departs from it in two points. The truth is thinned
    as well, so that a perfect prediction scores 100 however thick the labels are drawn, and F is not interpolated
    between thresholds.

    Thinning the cut map rather than suppressing non-maxima along the gradient is the benchmark's own choice; it needs
    no orientation, which on small images is mostly noise, and it also thins plateaus, where saturated networks have
    no maximum. Wide ramps, as of heads with a large stride, are narrow lines only after suppression: `nms=True`.

    Under `protocol="invpt"` everything is done as in the tables published with InvPT and its predecessors (the tool
    SEISM): probabilities are those of an 8-bit image, not rounded but cut off; non-maxima are suppressed, and what
    remains is weakened in the five outermost pixels; 101 thresholds, 0.001, 0.01, 0.02, ... 0.99, 0.999, have to be
    surpassed, not reached; and the target is taken as a map of regions, whose boundaries are the truth. Those tables
    have a tolerance of 0.011 for NYUD-v2 and 0.0075 for PASCAL-Context, where they count 2,498 of the 5,105 validation
    images only: which images there are is the reader's part, not this metric's.

    An image is the smallest rectangle that holds all its pixels that count: padding is cut off, and the diagonal is
    that of the unpadded image. Only the number of matches enters the measure, and it is the largest there is, not what
    taking the nearest pairs first would find. Images of a batch are shared among `torch.get_num_threads()` threads. The
    first use compiles the inner loops, for some ten seconds, which numba keeps on disk.

    Args:
        tolerance: Largest distance of a match, as a fraction of the image diagonal.
        min_distance: Largest distance of a match that is always granted, in pixels: 0.0075 of the diagonal of a 64 x
            64 image is 0.7 pixels, less than what the place of an edge between two pixels is known to. By default 1.5,
            which grants the 8 neighbours, and 0 under `protocol="invpt"`.
        thresholds: Increasing probabilities at which the prediction is cut; by default 0.05, 0.10, ... 0.95, and those
            above under `protocol="invpt"`.
        ignore_index: Target label of the pixels where edges are neither true nor predicted.
        protocol: How it is counted.
        nms: Whether non-maxima are suppressed before the cut; by default only under `protocol="invpt"`.
        truth: What a target holds: `"edges"`, 1 on an edge and 0 elsewhere, or `"regions"`, any numbers, with edges
            where they change. By default `"edges"`, and `"regions"` under `protocol="invpt"`.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If the thresholds are no increasing probabilities, a distance is negative, or `protocol` or `truth`
            is unknown.

    Example:
        >>> truth = torch.zeros(1, 16, 16)
        >>> truth[:, 8, 2:14] = 1
        >>> metric = OptimalDatasetF()
        >>> metric.update(truth.roll(1, dims=1) * 8 - 4, truth)  # logits of an edge one pixel too low
        >>> metric.compute()
        tensor(100.)
    """

    higher_is_better = True
    matched: Tensor
    predicted: Tensor
    true: Tensor

    def __init__(
        self,
        tolerance: float = 0.0075,
        min_distance: float | None = None,
        thresholds: Sequence[float] | None = None,
        ignore_index: int = 255,
        protocol: Protocol = "standard",
        nms: bool | None = None,
        truth: Truth | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(protocol, **kwargs)
        published = protocol == "invpt"
        self.tolerance = tolerance
        self.min_distance = (0.0 if published else 1.5) if min_distance is None else min_distance
        for name, value in (("tolerance", tolerance), ("min_distance", self.min_distance)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, not {value}")
        if truth not in ("edges", "regions", None):
            raise ValueError(f'truth must be "edges" or "regions", not {truth!r}')
        self.thresholds = increasing(_THRESHOLDS[protocol] if thresholds is None else thresholds)
        self.ignore_index = ignore_index
        self.nms = published if nms is None else nms
        self.truth: Truth = truth or ("regions" if published else "edges")
        per_threshold = torch.zeros(len(self.thresholds), dtype=torch.int64)
        self.add_state("matched", per_threshold, dist_reduce_fx="sum")
        self.add_state("predicted", per_threshold.clone(), dist_reduce_fx="sum")
        self.add_state("true", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: Logits, `(B, 1, H, W)` or `(B, H, W)`.
            target: 1 on an edge, 0 elsewhere, or numbers of regions, `(B, H, W)`, of any type.

        Raises:
            ValueError: If shapes do not fit, a target of edges is not binary, or the prediction has NaN.
        """
        probability = one_channel(prediction, target).sigmoid()
        if self.truth == "edges":
            binary(target, self.ignore_index)
        images = list(zip(probability.cpu().numpy(), target.cpu().numpy(), strict=True))
        if (threads := min(torch.get_num_threads(), len(images))) > 1:
            with ThreadPoolExecutor(threads) as pool:
                counts = list(pool.map(self._count, *zip(*images, strict=True)))
        else:
            counts = [self._count(*image) for image in images]
        for true, predicted, matched in counts:
            self.true += true
            self.predicted += torch.from_numpy(predicted).to(self.predicted)
            self.matched += torch.from_numpy(matched).to(self.matched)

    def compute(self) -> Float[Tensor, ""]:
        """The best F-measure in per cent; NaN while no edge was true or predicted."""
        return best_f(self.matched, self.predicted, self.true)

    def extra_repr(self) -> str:
        """What the representation says between its brackets."""
        return (
            f"tolerance={self.tolerance}, min_distance={self.min_distance}, thresholds={len(self.thresholds)}, "
            f"nms={self.nms}, truth={self.truth!r}, {super().extra_repr()}"
        )

    def _count(
        self, probability: Float[np.ndarray, "h w"], target: Shaped[np.ndarray, "h w"]
    ) -> tuple[int, Int[np.ndarray, " t"], Int[np.ndarray, " t"]]:
        """True edge pixels of one image, and per threshold predicted and matched ones."""
        from dtme.metrics.edges.matching import count_at_thresholds  # these import numba, which takes a second
        from dtme.metrics.edges.thinning import thin

        box = _box(target != self.ignore_index)
        probability, target = probability[box], target[box]
        if not target.size:
            nothing = np.zeros(len(self.thresholds), np.int64)
            return 0, nothing, nothing
        counted = target != self.ignore_index
        edges = thin(self._true(target, counted))
        levels = np.where(counted, self._levels(np.where(counted, probability, 0)), 0)
        distance = max(self.tolerance * math.hypot(*target.shape), self.min_distance)
        predicted, matched = count_at_thresholds(levels, edges, len(self.thresholds), distance)
        return int(edges.sum()), predicted, matched

    def _true(self, target: Shaped[np.ndarray, "h w"], counted: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        from dtme.metrics.edges.boundaries import region_boundaries

        return target == 1 if self.truth == "edges" else region_boundaries(target, counted)

    def _levels(self, probability: Float[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
        """How many thresholds each pixel passes."""
        from dtme.metrics.edges.suppression import suppress_non_maxima

        published = self.protocol == "invpt"
        if published:
            probability = np.floor(probability * 255).astype(np.float32) / np.float32(255)
        if self.nms:
            probability = suppress_non_maxima(probability, as_published=published)
        thresholds = np.array(self.thresholds, probability.dtype)
        return np.searchsorted(thresholds, probability, side="left" if published else "right")


def _box(counted: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    """The smallest rectangle that holds all pixels that count."""
    rows, columns = (np.flatnonzero(counted.any(axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0), slice(0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
