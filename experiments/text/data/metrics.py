"""The field's measures for text tasks, each over a whole data set, in per cent."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dtme._shapes import Float
from experiments.training.divergence import DivergedError

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True)
class Measure:
    """A measure of predictions over a whole data set.

    Attributes:
        name: As tables head it.
        make: Makes a fresh `torchmetrics.Metric`. With classes it is given class indices, otherwise numbers.
        binary: Whether it is meant for two classes alone.
    """

    name: str
    make: Callable[[int], Metric]
    binary: bool = False

    def __call__(self, predictions: Float[Tensor, "n outputs"], targets: Float[Tensor, " n"]) -> float:
        """The measure in per cent.

        A measure that does not exist, as a correlation with predictions that are all the same, counts as 0: such
        predictions tell nothing.

        Args:
            predictions: Scores per class, or one number a row.
            targets: Class indices, or numbers.

        Raises:
            DivergedError: A prediction is not finite.

        Example:
            >>> ACCURACY(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0.0, 0.0]))
            50.0
            >>> PEARSON(torch.ones(3, 1), torch.tensor([1.0, 2.0, 3.0]))
            0.0
        """
        if not bool(predictions.isfinite().all()):
            raise DivergedError(
                f"{self.name}: predictions are not finite; the model has diverged. Lower the learning rate."
            )
        outputs = predictions.shape[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of memory, and of variances that are zero, answered below
            metric = self.make(outputs)
            if outputs > 1:
                metric.update(predictions.argmax(1), targets.long())
            else:
                metric.update(predictions.squeeze(1).double(), targets.double())
            value = float(metric.compute())
        return 100 * value if math.isfinite(value) else 0.0


def _accuracy(outputs: int) -> Metric:
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(outputs, average="micro")


def _f1(outputs: int) -> Metric:
    from torchmetrics.classification import BinaryF1Score

    return BinaryF1Score()


def _matthews(outputs: int) -> Metric:
    from torchmetrics.classification import MulticlassMatthewsCorrCoef

    return MulticlassMatthewsCorrCoef(outputs)


def _pearson(outputs: int) -> Metric:
    from torchmetrics.regression import PearsonCorrCoef

    return PearsonCorrCoef().set_dtype(torch.float64)


def _spearman(outputs: int) -> Metric:
    from torchmetrics.regression import SpearmanCorrCoef

    return SpearmanCorrCoef().set_dtype(torch.float64)


ACCURACY = Measure("accuracy", _accuracy)
F1 = Measure("F1", _f1, binary=True)
MATTHEWS = Measure("MCC", _matthews)
PEARSON = Measure("Pearson", _pearson)
SPEARMAN = Measure("Spearman", _spearman)
