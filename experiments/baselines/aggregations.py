"""The gradient-balancing methods that the field compares with, each a `Balancing`; most through TorchJD.

Notation: `g_i` is task i's gradient by the shared parameters, `d` their update, `w_i` the weight of a task in it. Some
methods sum over the tasks, others average; an optimiser such as Adam does not see the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.baselines.balancing import GradientBalancing, Weighting, of_scale_one, weighted
from experiments.baselines.fair_weights import fair_weights

Projector = Callable[[Tensor, Any], Tensor]
"""From combinations of gradients (a row each) and the Gramian to the combinations that are their projections."""


def pcgrad(seed: int = 0) -> GradientBalancing:
    """PCGrad: each gradient is projected off those it conflicts with, one after another in random order.

        d = sum_i p_i,    p_i = g_i,    then for j != i in random order:  p_i -= min(0, p_i . g_j) / |g_j|^2 g_j

    Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, Algorithm 1.

    Args:
        seed: Of the orders.
    """
    from torchjd.aggregation import PCGradWeighting

    return _by_products(PCGradWeighting(), seed)


def cagrad(c: float = 0.4) -> GradientBalancing:
    """CAGrad: the update near the mean gradient that does most for the task it does least for.

        d = argmax_d min_i d . g_i    within    |d - g_0| <= c |g_0|,    g_0 = mean_i g_i

    Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021, Algorithm 1.

    Args:
        c: Radius as a share of the mean gradient's length; the paper chooses 0.4 for NYUv2 and 0.2 to 0.4 elsewhere.
    """
    from torchjd.aggregation import CAGradWeighting

    return _by_products(CAGradWeighting(c=c))


def mgda() -> GradientBalancing:
    """MGDA: the shortest vector in the convex hull of the gradients, by Frank-Wolfe.

        d = sum_i w_i g_i,    w = argmin |sum_i w_i g_i|^2    over    w >= 0, sum_i w_i = 1

    Désidéri, "Multiple-gradient descent algorithm", 2012; Sener & Koltun, "Multi-Task Learning as Multi-Objective
    Optimization", NeurIPS 2018, Algorithm 2.
    """
    from torchjd.aggregation import MGDAWeighting

    return _by_products(MGDAWeighting())


def imtl_g() -> GradientBalancing:
    """IMTL-G: the update whose projections onto all gradients are equally long.

        d = sum_i w_i g_i,    sum_i w_i = 1,    d . g_i / |g_i|    the same for all i

    Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, Eq. 5.
    """
    from torchjd.aggregation import IMTLGWeighting

    return _by_products(IMTLGWeighting())


def nash_mtl() -> GradientBalancing:
    """Nash-MTL: the update of Nash's bargaining solution, in which tasks share the gain in proportion.

        d = sum_i w_i g_i,    w > 0,    J J^T w = 1 / w

    Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, Claim 3.1. Solved exactly (`fairness`): the
    sequence of convex programs of the authors' code, which TorchJD adopts, stays at equal weights where its solver fails.
    """
    return GradientBalancing(partial(weighted, partial(fair_weights, alpha=1.0)))


def fairgrad(alpha: float = 2.0) -> GradientBalancing:
    """FairGrad: the update that shares the gain alpha-fairly.

        d = sum_i w_i g_i,    w > 0,    J J^T w = w^(-1 / alpha)

    Ban & Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, Eq. 4.

    Args:
        alpha: 1 is Nash-MTL's proportional fairness; the larger, the more it does for the task that gains least. The
            paper takes 2 for NYUv2.
    """
    return GradientBalancing(partial(weighted, partial(fair_weights, alpha=alpha)))


def aligned_mtl() -> GradientBalancing:
    """Aligned-MTL: the mean of the gradients after all principal components of J were made as long as the shortest.

        d = mean_i a_i,    A = sigma_min U V^T    for    J = U S V^T,    sigma_min its least singular value above zero

    Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023, Algorithm 1.
    """
    from torchjd.aggregation import AlignedMTLWeighting

    return _by_products(AlignedMTLWeighting())


def upgrad() -> GradientBalancing:
    """UPGrad: each gradient is projected onto the cone of updates that harm no task, and the mean is taken.

        d = mean_i argmin_x |x - g_i|^2    over    x . g_j >= 0 for all j

    Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, Section 3.
    """
    from torchjd.linalg import QuadprogProjector

    # TorchJD's UPGrad projects gradients of the lengths they come with, and its ridge bends what the short ones get.
    return GradientBalancing(partial(weighted, partial(_onto_cone, QuadprogProjector(reg_eps=1e-8))))


def graddrop(seed: int = 0) -> GradientBalancing:
    """GradDrop: each element of the update keeps the gradients of one sign, drawn by how much that sign outweighs.

        d = sum_i m_i g_i,    m_i = [g_i > 0] if u < P else [g_i < 0],    P = (1 + sum_i g_i / sum_i |g_i|) / 2

    with u uniform in (0, 1), one for each element. Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with
    Gradient Sign Dropout", NeurIPS 2020, Algorithm 1; by parameters here, as in TorchJD, instead of by activations.

    Args:
        seed: Of the signs.
    """
    from torchjd.aggregation import GradDrop

    drop = GradDrop()

    def by_element(blocks: Sequence[Tensor]) -> tuple[list[Tensor], None]:
        return [drop(block) for block in blocks], None

    return GradientBalancing(by_element, seed)


def _onto_cone(projector: Projector, products: Tensor) -> Tensor:
    """UPGrad's weights: the cone does not depend on the lengths of its normals, so that these are taken as 1."""
    lengths = products.diagonal().sqrt()
    return projector(torch.diag(lengths / len(lengths)), products / lengths.outer(lengths)).sum(0) / lengths


def _by_products(weighting: torch.nn.Module, seed: int = 0) -> GradientBalancing:
    own: Weighting = partial(of_scale_one, weighting)
    return GradientBalancing(partial(weighted, own), seed)
