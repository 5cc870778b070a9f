"""Mean angle between predicted and true surface normals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dtme._shapes import Float
from dtme.metrics._checks import reject_nan


class MeanAngularError(Metric):
    r"""Mean angle between predicted and true normals over all valid pixels of the data set, in degrees.

    $$ \frac{180}{\pi |V|} \sum_{v \in V} \operatorname{atan2}(\|n_v \times \hat n_v\|, \; n_v \cdot \hat n_v) $$

    which, unlike the arc cosine, is exact near 0 and 180 degrees and asks for no unit length. A pixel is valid where
    its true normal is finite and not zero. A predicted zero vector points nowhere and counts as 90 degrees.

    Args:
        **kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> metric = MeanAngularError()
        >>> target = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
        >>> metric.update(torch.tensor([0.0, 2.0, 2.0]).view(1, 3, 1, 1), target)
        >>> metric.compute()
        tensor(45.)
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    degrees: Tensor
    pixels: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("degrees", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: Vectors of any length, `(B, 3, H, W)`.
            target: True normals, `(B, 3, H, W)`, of any floating type.

        Raises:
            ValueError: If shapes do not fit or the prediction has NaN.
        """
        for name, normals in (("target", target), ("prediction", prediction)):
            if normals.ndim != 4 or normals.shape[1] != 3 or not normals.is_floating_point():
                raise ValueError(
                    f"{name} must hold real vectors of shape (B, 3, H, W), "
                    f"not {normals.dtype} of shape {tuple(normals.shape)}"
                )
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction must have the shape of target, {tuple(target.shape)}, not {tuple(prediction.shape)}"
            )
        reject_nan(prediction)
        valid = target.isfinite().all(1) & (target != 0).any(1)
        angles = _angle(prediction.movedim(1, -1)[valid].double(), target.movedim(1, -1)[valid].double())
        self.degrees += angles.rad2deg().sum()
        self.pixels += valid.sum()

    def compute(self) -> Float[Tensor, ""]:
        """The mean angle in degrees, between 0 and 180; NaN while no pixel was valid."""
        return (self.degrees / self.pixels).float()


def _angle(a: Float[Tensor, "n 3"], b: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """Angles in radians; double precision holds products of single-precision numbers exactly: parallel gives 0."""
    angle = torch.atan2(torch.linalg.cross(a, b).norm(dim=1), (a * b).sum(1))
    return angle.where((a != 0).any(1), torch.pi / 2)
