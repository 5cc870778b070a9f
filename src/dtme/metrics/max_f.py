"""Maximal F-measure of saliency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dtme._shapes import Float
from dtme.metrics._checks import binary, increasing, one_channel
from dtme.metrics._meter import Meter, Protocol
from dtme.metrics.f_measure import best_f

_THRESHOLDS: dict[Protocol, tuple[float, ...]] = {
    "standard": tuple(level / 255 for level in range(256)),
    "invpt": tuple(k / 20 for k in range(1, 20)),
}


class MaxF(Meter):
    r"""Best F-measure of a saliency map over a sweep of thresholds, in per cent.

    $$ \max_t \; 100 \, \frac{(1 + \beta^2) P_t R_t}{\beta^2 P_t + R_t}
       = \max_t \; 100 \, \frac{(1 + \beta^2) \, TP_t}{\beta^2 \, T + \hat T_t} $$

    with $T$ salient pixels, $\hat T_t$ pixels of probability at least $t$ and $TP_t$ pixels that are both, summed
    over the data set; $\beta^2 = 0.3$ weighs precision more, as Achanta et al., "Frequency-tuned salient region
    detection" (CVPR 2009), proposed. Under `protocol="invpt"` the probability goes through a second sigmoid before it
    meets the thresholds, as in the tables published with InvPT and its descendants: all then lie between 0.5 and
    0.731, so that of that protocol's 19 thresholds those up to 0.5 mark every pixel, those from 0.75 none, and the four
    between act as 0.2007, 0.4055, 0.6190 and 0.8473. Heads with two channels are measured by their difference, salient
    minus background, whose sigmoid is the softmax.

    Args:
        thresholds: Increasing probabilities; by default the 256 levels of an 8-bit map, and 0.05, 0.10, ... 0.95
            under `protocol="invpt"`.
        ignore_index: Target label of the pixels that do not count.
        protocol: Whether thresholds apply to the probability or to its sigmoid.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If the thresholds are no increasing probabilities or `protocol` is unknown.

    Example:
        >>> metric = MaxF()
        >>> metric.update(torch.tensor([[[4.0, 2.0, 1.0, -3.0]]]), torch.tensor([[[1, 1, 0, 0]]]))
        >>> metric.compute()  # between sigmoid(1) and sigmoid(2) the map is right everywhere
        tensor(100.)
    """

    higher_is_better = True
    beta_squared = 0.3
    found: Tensor
    predicted: Tensor
    salient: Tensor

    def __init__(
        self,
        thresholds: Sequence[float] | None = None,
        ignore_index: int = 255,
        protocol: Protocol = "standard",
        **kwargs: Any,
    ) -> None:
        super().__init__(protocol, **kwargs)
        self.thresholds = increasing(_THRESHOLDS[protocol] if thresholds is None else thresholds)
        self.ignore_index = ignore_index
        per_threshold = torch.zeros(len(self.thresholds), dtype=torch.int64)
        self.add_state("found", per_threshold, dist_reduce_fx="sum")
        self.add_state("predicted", per_threshold.clone(), dist_reduce_fx="sum")
        self.add_state("salient", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: Logits, `(B, 1, H, W)` or `(B, H, W)`.
            target: 1 where salient, 0 elsewhere, `(B, H, W)`, of any type.

        Raises:
            ValueError: If shapes do not fit, the target is not binary, or the prediction has NaN.
        """
        logits = one_channel(prediction, target)
        binary(target, self.ignore_index)
        counted = target != self.ignore_index
        probability, salient = logits[counted].sigmoid(), target[counted] == 1
        if self.protocol == "invpt":
            probability = probability.sigmoid()
        thresholds = torch.tensor(self.thresholds, dtype=probability.dtype, device=probability.device)
        passed = torch.bucketize(probability, thresholds, right=True)  # how many thresholds each pixel reaches
        self.found += _reaching(passed[salient], len(thresholds))
        self.predicted += _reaching(passed, len(thresholds))
        self.salient += salient.sum()

    def compute(self) -> Float[Tensor, ""]:
        """The best F-measure in per cent; NaN while no pixel has counted."""
        return best_f(self.found, self.predicted, self.salient, self.beta_squared)

    def extra_repr(self) -> str:
        """What the representation says between its brackets."""
        return f"thresholds={len(self.thresholds)}, {super().extra_repr()}"


def _reaching(passed: Tensor, thresholds: int) -> Tensor:
    """For each threshold, how many pixels reach it: those that pass more thresholds than lie below it."""
    return torch.bincount(passed, minlength=thresholds + 1).flip(0).cumsum(0).flip(0)[1:]
