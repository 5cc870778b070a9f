"""The two measures that only nuclei need: overlap of the mask, and error of a distance map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dtme._shapes import Bool, Float, Shaped
from dtme.metrics import DepthRMSE
from dtme.metrics._checks import binary, one_channel


class MaskDice(Metric):
    r"""Dice coefficient of the nuclei, $200 \, TP / (2 TP + FP + FN)$ over all pixels of the set, in per cent.

    Args:
        **kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> metric = MaskDice()
        >>> metric.update(torch.tensor([[[3.0, 2.0, -1.0]]]), torch.tensor([[[1, 0, 0]]]))
        >>> metric.compute()  # one of the two pixels found is a nucleus
        tensor(66.6667)
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    both: Tensor
    either: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("both", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("either", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: Logits, `(B, 1, H, W)` or `(B, H, W)`; positive means nucleus.
            target: 1 on nuclei, 0 on background, `(B, H, W)`, of any type.

        Raises:
            ValueError: If shapes do not fit, the target is not binary, or the prediction has NaN.
        """
        predicted = one_channel(prediction, target) > 0
        binary(target, ignore_index=0)
        true = target == 1
        self.both += (predicted & true).sum()
        self.either += predicted.sum() + true.sum()

    def compute(self) -> Float[Tensor, ""]:
        """Between 0 and 100; NaN while no pixel was or was called nucleus."""
        return (200 * self.both.double() / self.either).float()


class DistanceRMSE(DepthRMSE):
    """Root of the mean squared error of a distance map over the pixels of nuclei, in units of a nucleus's half width.

    Background is left out: there the map is 0 by definition, and so much of it would drown the nuclei. A pixel counts
    where its true distance is not 0, which also leaves out the few that lie exactly on their nucleus's centre line.

    Args:
        **kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> metric = DistanceRMSE()
        >>> metric.update(torch.tensor([[[9.0, -1.0, 0.5]]]), torch.tensor([[[0.0, -1.0, 1.0]]]))
        >>> metric.compute()  # errors 0 and 0.5; the first pixel is background
        tensor(0.3536)
    """

    @staticmethod
    def valid(target: Shaped[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
        """The pixels of nuclei."""
        return target != 0
