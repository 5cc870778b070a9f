"""Mean angle between predicted and true surface normals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dtme._shapes import Float
from dtme.metrics._checks import reject_infinite, reject_nan
from dtme.metrics._meter import Meter, Protocol


class MeanAngularError(Meter):
    r"""Mean angle between predicted and true normals over all valid pixels of the data set, in degrees.

    $$ \frac{180}{\pi |V|} \sum_{v \in V} \operatorname{atan2}(\|n_v \times \hat n_v\|, \; n_v \cdot \hat n_v) $$

    which, unlike the arc cosine, is exact near 0 and 180 degrees and asks for no unit length. A pixel is valid where
    its true normal is finite, not zero and without a component of `ignore_index`. A predicted zero vector points nowhere
    and counts as 90 degrees. Both protocols count alike: the field's $2 \operatorname{atan2}(\|n - \hat n\|, \|n +
    \hat n\|)$ of unit vectors is the same angle. Normals stored in 8 bits cannot say zero: their grey pixels are tiny
    vectors, which count unless the reader makes them zero.

    Args:
        ignore_index: What marks the true normal of a pixel that does not count, beside the zero vector.
        protocol: Said in tables; it changes nothing here.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If `protocol` is unknown.

    Example:
        >>> metric = MeanAngularError()
        >>> target = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
        >>> metric.update(torch.tensor([0.0, 2.0, 2.0]).view(1, 3, 1, 1), target)
        >>> metric.compute()
        tensor(45.)
    """

    higher_is_better = False
    degrees: Tensor
    pixels: Tensor

    def __init__(self, ignore_index: int = 255, protocol: Protocol = "standard", **kwargs: Any) -> None:
        super().__init__(protocol, **kwargs)
        self.ignore_index = ignore_index
        self.add_state("degrees", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: Vectors of any length, `(B, 3, H, W)`.
            target: True normals, `(B, 3, H, W)`, of any floating type.

        Raises:
            ValueError: If shapes do not fit or the prediction has NaN or infinite values.
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
        reject_infinite(prediction)
        valid = (target.isfinite() & (target != self.ignore_index)).all(1) & (target != 0).any(1)
        angles = _angle(prediction, target).where(valid, 0.0)
        self.degrees += angles.rad2deg().sum()
        self.pixels += valid.sum()

    def compute(self) -> Float[Tensor, ""]:
        """The mean angle in degrees, between 0 and 180; NaN while no pixel was valid."""
        return (self.degrees / self.pixels).float()


def _angle(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    """Angles in radians; double precision holds products of single-precision numbers exactly: parallel gives 0."""
    # Plane by plane, as the cross product of whole maps takes thrice as long.
    (ax, ay, az), (bx, by, bz) = a.double().unbind(1), b.double().unbind(1)
    cross = (ay * bz - az * by).square() + (az * bx - ax * bz).square() + (ax * by - ay * bx).square()
    angle = torch.atan2(cross.sqrt(), ax * bx + ay * by + az * bz)
    return angle.where((a != 0).any(1), torch.pi / 2)
