"""Losses of Taskonomy's tasks: `loss(prediction, target)` over the pixels that are known, those that are not NaN in the target.

Where nothing is known a loss is 0 and has a gradient of 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dtme._shapes import Float


def l1_loss(prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean of the absolute error.

    Example:
        >>> l1_loss(torch.zeros(1, 1, 1, 3), torch.tensor([[[[0.5, float("nan"), -1.0]]]]))  # (0.5 + 1) / 2
        tensor(0.7500)
    """
    known, error = _error(prediction, target)
    return error.abs().sum() / known.sum().clamp(min=1)


def squared_loss(prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean of the squared error.

    Example:
        >>> squared_loss(torch.zeros(1, 1, 1, 3), torch.tensor([[[[0.5, float("nan"), -1.0]]]]))  # (0.25 + 1) / 2
        tensor(0.6250)
    """
    known, error = _error(prediction, target)
    return error.square().sum() / known.sum().clamp(min=1)


def cosine_loss(prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """1 minus the cosine between predicted and true normals, a mean over pixels.

    Example:
        >>> target = torch.tensor([0.0, 0.6, 0.8]).reshape(1, 3, 1, 1)
        >>> cosine_loss(torch.tensor([0.0, 0.0, 9.0]).reshape(1, 3, 1, 1), target)
        tensor(0.2000)
    """
    known = target.isfinite().all(1)
    cosine = F.cosine_similarity(prediction.float(), torch.where(known[:, None], target.float(), 0.0), dim=1)
    return torch.where(known, 1 - cosine, 0.0).sum() / known.sum().clamp(min=1)


def width_cosine_loss(prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """1 minus the cosine between rows of pixels, channel by channel: what the paper's author's code computes for normals.

    A sum over the wrong axis there; here to meet numbers that were made with it. Nothing may be unknown.

    Example:
        >>> rows = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2).repeat(1, 3, 1, 1)
        >>> width_cosine_loss(rows, rows.flip(-1))
        tensor(1.)
    """
    return (1 - F.cosine_similarity(prediction.float(), target.float(), dim=3)).mean()


def _error(
    prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]
) -> tuple[Tensor, Float[Tensor, "b c h w"]]:
    known = target.isfinite()
    return known, torch.where(known, prediction.float() - torch.where(known, target.float(), 0.0), 0.0)
