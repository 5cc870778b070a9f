"""Losses of the dense tasks: `loss(prediction, target)` with the target as a split stores it, means over valid pixels.

Where nothing is valid a loss is 0 and has a gradient of 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dtme._shapes import Bool, Float, Shaped

IGNORE = 255
EDGE_WEIGHT = 0.95  # of the edge pixels, which are few


def segmentation_loss(prediction: Float[Tensor, "b c h w"], target: Shaped[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Cross entropy between logits and class labels; pixels labelled 255 do not count.

    Example:
        >>> segmentation_loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8))  # log 4
        tensor(1.3863)
    """
    target = target.long()
    total = F.cross_entropy(prediction.float(), target, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)


def depth_loss(prediction: Float[Tensor, "b ... h w"], target: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """L1 in metres over the pixels whose depth is known: finite and positive.

    Example:
        >>> depth_loss(torch.full((1, 1, 1, 3), 2.0), torch.tensor([[[1.5, 0.0, 3.0]]]))  # (0.5 + 1) / 2
        tensor(0.7500)
    """
    valid = target.isfinite() & (target > 0)
    return _mean((_as(prediction, target) - target.float()).abs(), valid)


def normals_loss(prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """L1 per component between the prediction, scaled to unit length, and unit normals; zero vectors do not count.

    Example:
        >>> ahead = torch.tensor([0.0, 0.0, -1.0]).reshape(1, 3, 1, 1)
        >>> normals_loss(5 * ahead, ahead)
        tensor(0.)
    """
    valid = (target.isfinite().all(dim=1, keepdim=True) & (target != 0).any(dim=1, keepdim=True)).expand_as(target)
    return _mean((F.normalize(prediction.float(), dim=1) - target.float()).abs(), valid)


def balanced_edge_loss(
    prediction: Float[Tensor, "b ... h w"], target: Shaped[Tensor, "..."], weight: float = EDGE_WEIGHT
) -> Float[Tensor, ""]:
    """Class-balanced binary cross entropy between logits and edges.

    With p = sigmoid(prediction), y = target and w = weight, the mean over pixels of
    -(w y log p + (1 - w) (1 - y) log(1 - p)). Pixels with y = 255 do not count.

    Example:
        >>> balanced_edge_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 0]]]))  # log 2 / 2
        tensor(0.3466)
    """
    y = (target == 1).float()
    entropy = F.binary_cross_entropy_with_logits(_as(prediction, target), y, reduction="none")
    return _mean(entropy * (weight * y + (1 - weight) * (1 - y)), target != IGNORE)


def mask_loss(prediction: Float[Tensor, "b ... h w"], target: Shaped[Tensor, "..."]) -> Float[Tensor, ""]:
    """Binary cross entropy between logits and a mask of 0 and 1; pixels with 255 do not count.

    Example:
        >>> mask_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 0]]]))  # log 2
        tensor(0.6931)
    """
    entropy = F.binary_cross_entropy_with_logits(_as(prediction, target), (target == 1).float(), reduction="none")
    return _mean(entropy, target != IGNORE)


def regression_loss(prediction: Float[Tensor, "b ... h w"], target: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean squared error over all pixels, for maps such as distances in [-1, 1].

    Example:
        >>> regression_loss(torch.tensor([[[[0.5, 0.0]]]]), torch.tensor([[[1.0, 0.0]]]))  # 0.25 / 2
        tensor(0.1250)
    """
    return F.mse_loss(_as(prediction, target), target.float())


def _as(prediction: Float[Tensor, "b ... h w"], target: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The prediction in the shape of the target, which may lack the dimension of the one channel."""
    if prediction.shape != target.shape:
        if prediction.ndim != 4 or prediction.shape[1] != 1 or prediction[:, 0].shape != target.shape:
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}; "
                "give a prediction (B, 1, H, W) and a target (B, H, W) or (B, 1, H, W)"
            )
        prediction = prediction[:, 0]
    return prediction.float()


def _mean(error: Float[Tensor, "..."], valid: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    """The mean over the valid places; the others may hold anything, infinity included."""
    return torch.where(valid, error, 0.0).sum() / valid.sum().clamp(min=1)
