"""Errors of maps of real numbers: mean absolute error (L1) and root mean squared error."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from dtme._shapes import Float
from dtme.metrics._checks import reject_infinite, reject_nan
from dtme.metrics._meter import Meter, Protocol


class _MeanOverValues(Meter):
    """Something summed over the known values, or under `protocol="invpt"` the means of batches."""

    higher_is_better = False
    error: Tensor
    terms: Tensor

    def __init__(self, protocol: Protocol = "standard", **kwargs: Any) -> None:
        super().__init__(protocol, **kwargs)
        self.add_state("error", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("terms", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: Values, `(B, C, H, W)`; `(B, 1, H, W)` or `(B, H, W)` where the target has no channels.
            target: True values, `(B, C, H, W)` or `(B, H, W)`, of any floating type; not finite where unknown.

        Raises:
            ValueError: If shapes do not fit or the prediction has NaN or infinite values.
        """
        prediction = _same_shape(prediction, target)
        reject_nan(prediction)
        reject_infinite(prediction)
        known = target.isfinite()
        error, count = self._error((prediction.double() - target).where(known, 0.0)).sum(), known.sum()
        if self.protocol == "standard":
            self.error += error
            self.terms += count
        elif count:
            self.error += error / count
            self.terms += 1

    @staticmethod
    @abstractmethod
    def _error(difference: Tensor) -> Tensor:
        """What is summed of each difference; of 0, nothing."""


class L1Error(_MeanOverValues):
    r"""Mean absolute error over all known values of the data set, in the targets' unit.

    $$ \frac{1}{|V|} \sum_{v \in V} |x_v - \hat x_v| $$

    over the values $V$ of all channels and pixels. A value is known where it is finite; a target holds NaN where there
    is nothing to compare with. Taskonomy's tasks are measured by it, in the units of their normalised maps. Under
    `protocol="invpt"` it is the mean over batches of each batch's mean, as in published tables of Taskonomy: smaller
    batches and batches with fewer known values weigh as much as others, so the size of batches belongs to the figure. A
    batch without any known value does not count.

    Args:
        protocol: Whether values or batches weigh alike.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If `protocol` is unknown.

    Example:
        >>> metric = L1Error()
        >>> metric.update(torch.tensor([[[1.0, 5.0, 9.0]]]), torch.tensor([[[1.0, 2.0, torch.nan]]]))
        >>> metric.compute()  # errors 0 and 3; the last value is unknown
        tensor(1.5000)
    """

    def compute(self) -> Float[Tensor, ""]:
        """The error in the targets' unit; NaN while no value was known."""
        return (self.error / self.terms).float()

    @staticmethod
    def _error(difference: Tensor) -> Tensor:
        return difference.abs()


class RMSE(_MeanOverValues):
    r"""Root mean squared error over all known values of the data set, in the targets' unit.

    $$ \sqrt{\frac{1}{|V|} \sum_{v \in V} (x_v - \hat x_v)^2} $$

    over the values $V$ of all channels and pixels, known as in `L1Error`. Taskonomy's principal curvature is measured by
    it. Under `protocol="invpt"` the mean under the root is the mean over batches of each batch's mean. Depth in metres
    has a metric of its own, `DepthRMSE`, which knows its invalid pixels.

    Args:
        root: Whether the root is taken; without it, this is the mean squared error.
        protocol: Whether values or batches weigh alike.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If `protocol` is unknown.

    Example:
        >>> metric = RMSE()
        >>> metric.update(torch.tensor([[[1.0, 5.0, 9.0]]]), torch.tensor([[[1.0, 2.0, torch.nan]]]))
        >>> metric.compute()  # errors 0 and 3; the last value is unknown
        tensor(2.1213)
    """

    def __init__(self, root: bool = True, protocol: Protocol = "standard", **kwargs: Any) -> None:
        super().__init__(protocol, **kwargs)
        self.root = root

    def compute(self) -> Float[Tensor, ""]:
        """The error in the targets' unit, or its square without the root; NaN while no value was known."""
        mean = self.error / self.terms
        return (mean.sqrt() if self.root else mean).float()

    def extra_repr(self) -> str:
        """What the representation says between its brackets."""
        return f"root={self.root}, {super().extra_repr()}"

    @staticmethod
    def _error(difference: Tensor) -> Tensor:
        return difference.square()


def _same_shape(prediction: Tensor, target: Tensor) -> Tensor:
    """The prediction in the target's shape."""
    if target.ndim not in (3, 4) or not target.is_floating_point():
        raise ValueError(
            f"target must hold real numbers of shape (B, C, H, W) or (B, H, W), not {target.dtype} of shape "
            f"{tuple(target.shape)}"
        )
    one = target.ndim == 3 and prediction.ndim == 4 and prediction.shape[1] == 1
    values = prediction.squeeze(1) if one else prediction
    if values.shape != target.shape or not values.is_floating_point():
        raise ValueError(
            f"prediction must hold real numbers in the shape of target, {tuple(target.shape)}, "
            f"not {prediction.dtype} of shape {tuple(prediction.shape)}"
        )
    return values
