"""Losses of the tasks of NYUD-v2 and PASCAL-Context as ATRC, InvPT and TaskPrompter define them, and their weights.

`loss(prediction, target)` is a scalar, computed in float32; the target is as `experiments.dense.datasets.kinds` says. Where
nothing is known a loss is 0 and has a gradient of 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dtme._shapes import Bool, Float, Shaped

LossWeights = Literal["invpt", "ones"]

WEIGHTS: Mapping[str, float] = {
    "semseg": 1.0,
    "parts": 2.0,
    "saliency": 5.0,
    "depth": 1.0,
    "normals": 10.0,
    "edges": 50.0,
}
"""Of ASTMT, MTI-Net, ATRC, InvPT and TaskPrompter."""


def weight_of(task: str, weights: LossWeights) -> float:
    """The weight of a task's loss in the sum.

    >>> weight_of("edges", "invpt"), weight_of("edges", "ones")
    (50.0, 1.0)
    """
    return WEIGHTS[task] if weights == "invpt" else 1.0


def class_loss(prediction: Float[Tensor, "b c h w"], target: Shaped[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Cross entropy of the classes, the mean over known pixels.

    Example:
        >>> class_loss(torch.zeros(1, 4, 1, 2), torch.tensor([[[3, 255]]], dtype=torch.uint8))  # log 4
        tensor(1.3863)
    """
    total = F.cross_entropy(prediction.float(), target.long(), ignore_index=255, reduction="sum")
    return total / (target != 255).sum().clamp(min=1)


def saliency_loss(prediction: Float[Tensor, "b 1 h w"], target: Shaped[Tensor, "b h w"]) -> Float[Tensor, ""]:
    r"""Cross entropy in which salient pixels and others of the batch weigh by how few they are, over the known pixels $V$.

    $$ -\frac{1}{|V|} \sum_{v \in V} \frac{|V_0|}{|V|} y_v \log p_v + \frac{|V_1|}{|V|} (1 - y_v) \log(1 - p_v) $$

    with $V_1$ the salient ones and $V_0$ the rest; the sum is divided by the number of pixels, not by the weights. Of two
    channels, as the field's heads have, the difference is the logit given here.

    Example:
        >>> saliency_loss(torch.zeros(1, 1, 1, 4), torch.tensor([[[1, 0, 0, 0]]]))  # (3/4 + 3/4) log 2 / 4
        tensor(0.2599)
    """
    known = target != 255
    salient = (target == 1).float()
    count = known.sum().clamp(min=1)
    positive = (salient * known).sum() / count
    weight = torch.where(target == 1, known.sum() / count - positive, positive)
    entropy = F.binary_cross_entropy_with_logits(prediction[:, 0].float(), salient, reduction="none")
    return _mean(weight * entropy, known)


def edge_loss(
    prediction: Float[Tensor, "b 1 h w"], target: Shaped[Tensor, "b h w"], weight: float = 0.95
) -> Float[Tensor, ""]:
    r"""Cross entropy in which edges weigh $w$ and the rest $1 - w$, over the known pixels $V$.

    $$ -\frac{1}{|V|} \sum_{v \in V} w \, y_v \log p_v + (1 - w) (1 - y_v) \log(1 - p_v) $$

    Args:
        prediction: Logits.
        target: 1 on edges.
        weight: 0.95 in InvPT and TaskPrompter; 0.8 on NYUD-v2 in ASTMT and ATRC.

    Example:
        >>> edge_loss(torch.zeros(1, 1, 1, 3), torch.tensor([[[1, 0, 255]]]))  # (0.95 + 0.05) log 2 / 2
        tensor(0.3466)
    """
    edge = (target == 1).float()
    entropy = F.binary_cross_entropy_with_logits(prediction[:, 0].float(), edge, reduction="none")
    return _mean(entropy * (weight * edge + (1 - weight) * (1 - edge)), target != 255)


def normals_loss(
    prediction: Float[Tensor, "b 3 h w"],
    target: Float[Tensor, "b 3 h w"],
    *,
    over: Literal["pixels", "elements"] = "pixels",
) -> Float[Tensor, ""]:
    """L1 between the prediction, scaled to unit length, and the normals.

    Args:
        prediction: Vectors of any length.
        target: Normals as stored, not scaled.
        over: What the sum is divided by: the number of known pixels, as in InvPT; or that of their three components, as in ASTMT
            and MTI-Net, a third of it.

    Example:
        >>> target = torch.tensor([0.0, 0.6, 0.8]).reshape(1, 3, 1, 1)
        >>> normals_loss(torch.tensor([0.0, 0.0, 9.0]).reshape(1, 3, 1, 1), target)  # 0 + 0.6 + 0.2
        tensor(0.8000)
    """
    known = (target != 0).any(dim=1)
    error = (F.normalize(prediction.float(), dim=1) - target.float()).abs()
    return _mean(error.sum(1) if over == "pixels" else error.mean(1), known)


def depth_loss(prediction: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """L1 in metres over the pixels whose depth is known.

    Example:
        >>> depth_loss(torch.full((1, 1, 1, 3), 2.0), torch.tensor([[[1.5, 0.0, 3.0]]]))  # (0.5 + 1) / 2
        tensor(0.7500)
    """
    return _mean((prediction[:, 0].float() - target.float()).abs(), target > 0)


def _mean(error: Float[Tensor, "b h w"], known: Bool[Tensor, "b h w"]) -> Float[Tensor, ""]:
    return torch.where(known, error, 0.0).sum() / known.sum().clamp(min=1)
