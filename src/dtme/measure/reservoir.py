"""A bounded sample of all gradients that pass by, for tasks that never share an input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtme._shapes import Float, Int
from dtme.measure.conflict import scale_to_unit


@dataclass
class Reservoir:
    """At most so many samples out of all that pass by, each with the same chance; memory does not grow with them.

    Kept are the samples with the smallest keys, and a key is a hash of the sample itself: which are kept depends neither
    on their order nor on how they are shared among processes.
    """

    capacity: int
    rows: Float[Tensor, "kept p"] | None = None
    keys: Int[Tensor, " kept"] | None = None

    def add(self, rows: Float[Tensor, "samples p"]) -> None:
        """Offer rows to the reservoir."""
        self.merge(Reservoir(self.capacity, rows, hash_rows(rows)))

    def merge(self, other: Reservoir) -> None:
        """Offer what another reservoir keeps to this one."""
        if other.rows is None or other.keys is None:
            return
        rows = other.rows if self.rows is None else torch.cat([self.rows, other.rows.to(self.rows)])
        keys = other.keys if self.keys is None else torch.cat([self.keys, other.keys.to(self.keys)])
        kept = keys.argsort(stable=True)[: self.capacity]
        self.rows, self.keys = rows[kept], keys[kept]


def hash_rows(rows: Float[Tensor, "samples p"]) -> Int[Tensor, " samples"]:
    """A hash of each row: a sum of its values' bits with random odd factors, modulo 2^64, spread by a second product.

    A row is taken over its largest magnitude and in bfloat16, so that its last bits do not matter.
    """
    bits = scale_to_unit(rows)[0].to(torch.bfloat16).view(torch.int16).to(torch.int64)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (rows.shape[-1],), generator=generator) | 1
    sums = (bits * factors.to(bits.device)).sum(-1)
    mixed = (sums ^ (sums >> 29)) * -0x4B47D0C5B5EDB6D5
    return mixed ^ (mixed >> 32)
