"""Root mean squared error of depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dtme._shapes import Bool, Float, Shaped
from dtme.metrics._checks import one_channel, reject_infinite
from dtme.metrics._meter import Meter, Protocol

_FARTHEST = 80.0
"""Metres, in the field's tables; depth sensors reach 10."""


class DepthRMSE(Meter):
    r"""Root of the mean squared depth error over all valid pixels of the data set, in the targets' unit (metres).

    $$ \sqrt{\frac{1}{|V|} \sum_{v \in V} (d_v - \hat d_v)^2} $$

    A pixel is valid where its true depth is finite and positive, as sensors write 0 where they measured nothing. All
    pixels of the set count alike: the mean over images of each image's error, which older tables report, is another
    number. Under `protocol="invpt"` negative predictions count as 0, and true depths of 80 m or more are not valid, so
    that neither are pixels marked by 255, as in the tables published with InvPT, TaskPrompter and their descendants.

    Args:
        protocol: What becomes of negative predictions and of true depths beyond 80 m.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If `protocol` is unknown.

    Example:
        >>> metric = DepthRMSE()
        >>> metric.update(torch.tensor([[[1.0, 5.0, 9.0]]]), torch.tensor([[[1.0, 2.0, 0.0]]]))
        >>> metric.compute()  # errors 0 and 3; the last pixel has no true depth
        tensor(2.1213)
    """

    higher_is_better = False
    squared_error: Tensor
    pixels: Tensor

    def __init__(self, protocol: Protocol = "standard", **kwargs: Any) -> None:
        super().__init__(protocol, **kwargs)
        self.add_state("squared_error", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: Depth in metres, `(B, 1, H, W)` or `(B, H, W)`.
            target: True depth in metres, `(B, H, W)`, of any floating type.

        Raises:
            ValueError: If shapes do not fit or the prediction has NaN or infinite values.
        """
        depth = one_channel(prediction, target)
        reject_infinite(depth)
        valid = self.valid(target)
        if self.protocol == "invpt":
            depth, valid = depth.clamp(min=0), valid & (target < _FARTHEST)
        self.squared_error += (depth[valid].double() - target[valid].double()).square().sum()
        self.pixels += valid.sum()

    @staticmethod
    def valid(target: Shaped[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
        """Which pixels count."""
        return target.isfinite() & (target > 0)

    def compute(self) -> Float[Tensor, ""]:
        """The error in metres; NaN while no pixel was valid."""
        return (self.squared_error / self.pixels).sqrt().float()
