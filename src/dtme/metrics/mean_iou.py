"""Mean intersection over union."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from dtme._shapes import Float
from dtme.metrics._checks import reject_nan
from dtme.metrics._meter import Meter, Protocol


class MeanIoU(Meter):
    r"""Mean over the classes of intersection over union, in per cent.

    $$ \frac{100}{|C|} \sum_{c \in C} \frac{TP_c}{TP_c + FP_c + FN_c} $$

    counted over all pixels of the data set, not averaged over images. Under `protocol="standard"`, $C$ holds the
    classes that occur in a prediction or in a target anywhere in the set; under `protocol="invpt"` it holds every
    class, and one that never occurs counts as 0, as in the tables published with InvPT and its descendants. Semantic
    classes (40 of NYUD-v2, 21 of PASCAL-Context with the background) and the 7 human parts, background included, are
    measured alike; an image in which nobody is seen says nothing about parts and is ignored whole.

    Args:
        num_classes: Number of classes.
        ignore_index: Target label of the pixels that do not count.
        protocol: What becomes of classes that never occur.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If `num_classes` is less than 1 or `protocol` is unknown.

    Example:
        >>> metric = MeanIoU(num_classes=3)
        >>> metric.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 255]]]))
        >>> metric.compute()  # class 0: 1 of 2, class 1: 1 of 2, class 2 absent
        tensor(50.)
    """

    higher_is_better = True
    confusion: Tensor

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        protocol: Protocol = "standard",
        **kwargs: Any,
    ) -> None:
        super().__init__(protocol, **kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: Logits `(B, num_classes, H, W)`, or integer labels `(B, H, W)`.
            target: Integer labels `(B, H, W)` of any integer type.

        Raises:
            ValueError: If shapes do not fit, a label is no class, or the prediction has NaN.
        """
        labels, target = self._labels(prediction, target), target.long()
        counted = target != self.ignore_index
        labels, target = labels[counted], target[counted]
        for name, values in (("prediction", labels), ("target", target)):
            strange = values[(values < 0) | (values >= self.num_classes)]
            if len(strange):
                raise ValueError(
                    f"{name} has label {int(strange[0])}, which is no class of num_classes={self.num_classes}: "
                    f"map it to a class, or in a target to ignore_index={self.ignore_index}"
                )
        self.confusion += multiclass_confusion_matrix(labels, target, self.num_classes, validate_args=False)

    def compute(self) -> Float[Tensor, ""]:
        """The mean in per cent, between 0 and 100; NaN while no pixel counts."""
        confusion = self.confusion.double()
        intersection = confusion.diag()
        union = confusion.sum(0) + confusion.sum(1) - intersection
        seen = union > 0
        iou = intersection[seen] / union[seen]
        classes = int(seen.sum()) if self.protocol == "standard" else self.num_classes
        # Where no pixel counted there is no class to call 0 either.
        return (100 * iou.sum() / (classes if seen.any() else 0)).float()

    def extra_repr(self) -> str:
        """What the representation says between its brackets."""
        return f"num_classes={self.num_classes}, {super().extra_repr()}"

    def _labels(self, prediction: Tensor, target: Tensor) -> Tensor:
        if target.ndim != 3 or target.is_floating_point():
            raise ValueError(
                f"target must hold integer labels of shape (B, H, W), not {target.dtype} of shape {tuple(target.shape)}"
            )
        b, h, w = target.shape
        if prediction.is_floating_point() and prediction.shape == (b, self.num_classes, h, w):
            best, labels = prediction.max(1)  # several times as fast as argmax here, and NaN is the largest value
            if best.isnan().any():
                reject_nan(prediction)
            return labels
        if not prediction.is_floating_point() and prediction.shape == (b, h, w):
            return prediction.long()
        raise ValueError(
            f"prediction must be logits of shape {(b, self.num_classes, h, w)} or integer labels of shape {(b, h, w)}, "
            f"not {prediction.dtype} of shape {tuple(prediction.shape)}"
        )
