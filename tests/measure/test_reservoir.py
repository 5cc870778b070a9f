"""A bounded sample: each row has the same chance, whatever the order and however rows are shared among processes."""

from __future__ import annotations

import math

import pytest
import torch

from dtme.measure.reservoir import Reservoir


def test_a_reservoir_keeps_each_with_the_same_chance():
    kept = torch.zeros(20)
    for _ in range(1500):
        reservoir, rows = Reservoir(5), torch.randn(20, 8)
        for batch in rows.split([3, 9, 8]):
            reservoir.add(batch)
        assert reservoir.rows is not None
        assert reservoir.rows.shape == (5, 8)
        found = (reservoir.rows.unsqueeze(1) == rows).all(2)
        assert found.sum(1).tolist() == [1] * 5
        kept += found.sum(0)
    spread = math.sqrt(1500 * 0.25 * 0.75)
    assert bool(((kept - 1500 * 0.25).abs() < 4 * spread).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_a_reservoir_keeps_depends_neither_on_order_nor_on_sharing(dtype: torch.dtype):
    rows, reservoirs = torch.randn(300, 6).to(dtype), [Reservoir(40) for _ in range(3)]
    reservoirs[0].add(rows)
    for batch in rows[torch.randperm(300)].split(7):
        reservoirs[1].add(batch)
    shares = [Reservoir(40), Reservoir(40), Reservoir(40)]
    for share, part in zip(shares, rows.split([290, 10, 0]), strict=True):
        share.add(part)
        reservoirs[2].merge(share)
    for other in reservoirs[1:]:
        assert torch.equal(reservoirs[0].rows, other.rows)
    shrunken, tiny = Reservoir(40), rows.double() * (1 + 1e-13) * 1e-30
    shrunken.add(tiny)
    assert torch.equal(shrunken.keys, reservoirs[0].keys)  # neither the size of a gradient nor its last bits matter


def test_a_reservoir_that_is_not_full_keeps_all_and_owns_its_rows():
    reservoir, batch = Reservoir(5), torch.arange(6.0).view(3, 2)
    assert reservoir.rows is None
    reservoir.merge(Reservoir(5))
    assert reservoir.rows is None
    reservoir.add(batch)
    whole = batch.clone()
    batch.zero_()
    assert sorted(reservoir.rows.tolist()) == whole.tolist()
