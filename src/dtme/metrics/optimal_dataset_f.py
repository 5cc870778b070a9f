"""F-measure of edges at the threshold that is best for the whole data set (odsF)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dtme._shapes import Bool, Float, Int
from dtme.metrics._checks import binary, increasing, one_channel
from dtme.metrics.f_measure import best_f
from dtme.metrics.matching import count_matches
from dtme.metrics.thinning import IMAGES_PER_WORD, thin

_PIXELS_AT_ONCE = 2**16  # a few images at a time stay in the processor's cache; more are slower and take more memory


class OptimalDatasetF(Metric):
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
    no maximum.

    Args:
        tolerance: Largest distance of a match, as a fraction of the image diagonal.
        min_distance: Largest distance of a match that is always granted, in pixels: 0.0075 of the diagonal of a 64 x
            64 image is 0.7 pixels, less than what the place of an edge between two pixels is known to. 1.5 grants the
            8 neighbours.
        thresholds: Increasing probabilities at which the prediction is cut.
        ignore_index: Target label of the pixels where edges are neither true nor predicted.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If the thresholds are no increasing probabilities, or a distance is negative.

    Example:
        >>> truth = torch.zeros(1, 16, 16)
        >>> truth[:, 8, 2:14] = 1
        >>> metric = OptimalDatasetF()
        >>> metric.update(truth.roll(1, dims=1) * 8 - 4, truth)  # logits of an edge one pixel too low
        >>> metric.compute()
        tensor(100.)
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    matched: Tensor
    predicted: Tensor
    true: Tensor

    def __init__(
        self,
        tolerance: float = 0.0075,
        min_distance: float = 1.5,
        thresholds: Sequence[float] = tuple(k / 20 for k in range(1, 20)),
        ignore_index: int = 255,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("tolerance", tolerance), ("min_distance", min_distance)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, not {value}")
        self.tolerance = tolerance
        self.min_distance = min_distance
        self.thresholds = increasing(thresholds)
        self.ignore_index = ignore_index
        per_threshold = torch.zeros(len(self.thresholds), dtype=torch.int64)
        self.add_state("matched", per_threshold, dist_reduce_fx="sum")
        self.add_state("predicted", per_threshold.clone(), dist_reduce_fx="sum")
        self.add_state("true", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: Logits, `(B, 1, H, W)` or `(B, H, W)`.
            target: 1 on an edge, 0 elsewhere, `(B, H, W)`, of any type.

        Raises:
            ValueError: If shapes do not fit, the target is not binary, or the prediction has NaN.
        """
        logits = one_channel(prediction, target)
        binary(target, self.ignore_index)
        probability = logits.sigmoid().masked_fill(target == self.ignore_index, -1)  # below every threshold
        at_once = max(1, _PIXELS_AT_ONCE // target[0].numel())
        for some, edges in zip(probability.split(at_once), (target == 1).split(at_once), strict=True):
            self._count(some, edges)

    def compute(self) -> Float[Tensor, ""]:
        """The best F-measure in per cent; NaN while no edge was true or predicted."""
        return best_f(self.matched, self.predicted, self.true)

    def _count(self, probability: Float[Tensor, "b h w"], edges: Bool[Tensor, "b h w"]) -> None:
        distance = max(self.tolerance * math.hypot(*edges.shape[1:]), self.min_distance)
        true = thin(edges.int()).bool().cpu()
        self.true += int(true.sum())
        for first in range(0, len(self.thresholds), IMAGES_PER_WORD):
            thresholds = self.thresholds[first : first + IMAGES_PER_WORD]
            lines = thin(_cut(probability, thresholds)).cpu()
            for k in range(len(thresholds)):
                predicted = _bit(lines, k)
                self.predicted[first + k] += int(predicted.sum())
                self.matched[first + k] += count_matches(predicted.numpy(), true.numpy(), distance)


def _cut(probability: Float[Tensor, "b h w"], thresholds: Sequence[float]) -> Int[Tensor, "b h w"]:
    """The cut maps of all thresholds in one: bit k is set where the probability reaches threshold k."""
    levels = torch.tensor(thresholds, dtype=probability.dtype, device=probability.device)
    # As thresholds increase, the bits that are set are the lowest ones: as many as there are thresholds reached.
    return (1 << torch.bucketize(probability, levels, right=True, out_int32=True)) - 1


def _bit(words: Int[Tensor, "b h w"], k: int) -> Bool[Tensor, "b h w"]:
    return (words >> k & 1).bool()
