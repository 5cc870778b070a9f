"""Root mean squared error of depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dtme._shapes import Bool, Float, Shaped
from dtme.metrics._checks import one_channel


class DepthRMSE(Metric):
    r"""Root of the mean squared depth error over all valid pixels of the data set, in the targets' unit (metres).

    $$ \sqrt{\frac{1}{|V|} \sum_{v \in V} (d_v - \hat d_v)^2} $$

    A pixel is valid where its true depth is finite and positive, as sensors write 0 where they measured nothing.

    Args:
        **kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> metric = DepthRMSE()
        >>> metric.update(torch.tensor([[[1.0, 5.0, 9.0]]]), torch.tensor([[[1.0, 2.0, 0.0]]]))
        >>> metric.compute()  # errors 0 and 3; the last pixel has no true depth
        tensor(2.1213)
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    squared_error: Tensor
    pixels: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("squared_error", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: Depth in metres, `(B, 1, H, W)` or `(B, H, W)`.
            target: True depth in metres, `(B, H, W)`, of any floating type.

        Raises:
            ValueError: If shapes do not fit or the prediction has NaN.
        """
        depth = one_channel(prediction, target)
        valid = self.valid(target)
        self.squared_error += (depth[valid].double() - target[valid].double()).square().sum()
        self.pixels += valid.sum()

    @staticmethod
    def valid(target: Shaped[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
        """Which pixels count."""
        return target.isfinite() & (target > 0)

    def compute(self) -> Float[Tensor, ""]:
        """The error in metres; NaN while no pixel was valid."""
        return (self.squared_error / self.pixels).sqrt().float()
