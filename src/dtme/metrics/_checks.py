"""What a metric refuses, before any number is made of it.

The arguments checked here are annotated as plain tensors, so that a wrong shape meets these messages and no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dtme._shapes import Float


def reject_nan(prediction: Tensor) -> None:
    """Raise if the prediction holds NaN, which would turn the whole data set's value into NaN."""
    if _sum(prediction).isnan() and (count := int(prediction.isnan().sum())):
        raise ValueError(
            f"prediction has {count} NaN among its {prediction.numel()} values: the model has diverged; "
            "lower the learning rate, or find the batch where its loss stopped being finite"
        )


def reject_infinite(prediction: Tensor) -> None:
    """Raise if the prediction holds an infinite value, of which no error can be taken; NaN is not looked for."""
    if not _sum(prediction).isfinite() and (count := int(prediction.isinf().sum())):
        raise ValueError(
            f"prediction has {count} infinite among its {prediction.numel()} values: it has overflowed, as float16 does "
            "beyond 65504; let the head compute in float32 or bfloat16, or look for where the model diverges"
        )


def _sum(prediction: Tensor) -> Tensor:
    """The sum, finite only if every value is, at a tenth of what it costs to look at each."""
    return prediction.sum(dtype=torch.promote_types(prediction.dtype, torch.float32))


def one_channel(prediction: Tensor, target: Tensor) -> Float[Tensor, "b h w"]:
    """The prediction in the target's shape `(B, H, W)`, in at least single precision."""
    if target.ndim != 3:
        raise ValueError(f"target must have shape (B, H, W), not {tuple(target.shape)}")
    values = prediction.squeeze(1) if prediction.ndim == 4 and prediction.shape[1] == 1 else prediction
    if values.shape != target.shape:
        raise ValueError(
            f"prediction must have shape (B, 1, H, W) or (B, H, W) with the B, H, W of target "
            f"{tuple(target.shape)}, not {tuple(prediction.shape)}"
        )
    if not values.is_floating_point():
        raise ValueError(f"prediction must hold real numbers, not {prediction.dtype}: pass what the head returns")
    reject_nan(values)
    return values if values.itemsize >= 4 else values.float()


def binary(target: Tensor, ignore_index: int) -> None:
    """Raise if the target holds anything but 0, 1 and the ignored value."""
    strange = (target != 0) & (target != 1) & (target != ignore_index)
    if strange.any():
        raise ValueError(
            f"target must hold 0, 1 or ignore_index={ignore_index}, not {target[strange][0].item()}: "
            "map it to one of these"
        )


def increasing(thresholds: Sequence[float]) -> tuple[float, ...]:
    """The thresholds, once it is sure that there is one, that they are probabilities and that they increase."""
    values = tuple(float(threshold) for threshold in thresholds)
    if not values or not all(0 <= value <= 1 for value in values) or any(b <= a for a, b in pairwise(values)):
        raise ValueError(f"thresholds must be increasing probabilities between 0 and 1, at least one, not {values}")
    return values
