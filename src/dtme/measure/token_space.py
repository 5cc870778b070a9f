"""Token space (Sec. 3.2, Eq. 1-3): which directions of a block's channels its tokens use, and which they leave empty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtme._precision import full_precision
from dtme._shapes import Float


@dataclass(frozen=True)
class TokenSpace:
    """Range space and null space of one block's tokens.

    Attributes:
        basis: Orthonormal eigenvectors of the second moment as columns, by falling eigenvalue; the first `rank` span the
            range space, the others the null space.
        rank: Dimension m of the range space, 1 <= m <= p - 1.
        energy: The eigenvalues.
    """

    basis: Float[Tensor, "p p"]
    rank: int
    energy: Float[Tensor, " p"]

    @property
    def range_basis(self) -> Float[Tensor, "p m"]:
        """Basis of the range space."""
        return self.basis[:, : self.rank]

    @property
    def null_basis(self) -> Float[Tensor, "p n"]:
        """Basis of the null space."""
        return self.basis[:, self.rank :]

    def sample_energy(self, count: int) -> Float[Tensor, " count"]:
        """The energy at evenly spaced directions from the strongest to the weakest, relative to the strongest."""
        energy = self.energy.double().cpu()
        return energy[torch.linspace(0, len(energy) - 1, count).round().long()] / energy[0]


def second_moment(tokens: Float[Tensor, "samples tokens p"]) -> Float[Tensor, "p p"]:
    """`sum_l T_l^T T_l` over the samples of a batch, uncentred (Eq. 1 before the division by n), in float64.

    Products are taken in the type of the tokens, but never below float32.
    """
    flat = tokens.flatten(0, 1)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    with full_precision(flat.device):
        return (flat.T @ flat).to(torch.float64)


def token_space(moment: Float[Tensor, "p p"], variance_ratio: float) -> TokenSpace:
    """Split the channels by the eigenvectors of the second moment (Eq. 2-3).

    The rank m is the largest with `sum(energy[:m]) / sum(energy[m:]) <= variance_ratio`, held to 1 <= m <= p - 1, so
    that a ratio of 100 keeps about 99 % of the energy in the range space.

    Args:
        moment: Second moment of the tokens; its scale does not matter.
        variance_ratio: r, energy in the range space over energy in the null space.

    Example:
        >>> space = token_space(torch.diag(torch.tensor([1.0, 90.0, 9.0, 0.0])), variance_ratio=100.0)
        >>> space.rank, space.energy.tolist()
        (2, [90.0, 9.0, 1.0, 0.0])
    """
    energy, basis = torch.linalg.eigh(moment.to(torch.float64))
    energy, basis = energy.flip(0).clamp_min(0.0), basis.flip(1)
    kept = energy.cumsum(0)
    left = energy.flip(0).cumsum(0).flip(0)[1:]  # summed from the small end: subtracting from the total would cancel
    fits = kept[:-1] <= variance_ratio * left
    rank = int(fits.nonzero().max()) + 1 if bool(fits.any()) else 1
    return TokenSpace(basis, rank, energy)
