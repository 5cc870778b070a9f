"""Losses of MTAN and of those that compare with it: `loss(prediction, target)`, 0 where nothing is known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dtme._shapes import Float


def cosine_loss(prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """1 minus the mean product of the prediction, scaled to unit length, and the normals, over known pixels.

    Example:
        >>> target = torch.tensor([0.0, 0.6, 0.8]).reshape(1, 3, 1, 1)
        >>> cosine_loss(torch.tensor([0.0, 0.0, 9.0]).reshape(1, 3, 1, 1), target)
        tensor(0.2000)
    """
    known = (target != 0).any(dim=1)
    product = (F.normalize(prediction.float(), dim=1) * target.float()).sum(1)
    return torch.where(known, 1 - product, 0.0).sum() / known.sum().clamp(min=1)
