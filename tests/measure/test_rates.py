"""Rates and their errors, against sums and draws written out."""

from __future__ import annotations

import math

import pytest
import torch

from dtme.measure.conflict import Conflicts, count_conflicts
from dtme.measure.rates import RateSums, disjoint_rate, normal_quantile
from dtme.measure.token_space import TokenSpace, token_space

SAMPLES, K = 12, 3


def drawn_conflicts() -> Conflicts:
    counted = torch.randint(0, 6, (SAMPLES, K, K))
    counted = (counted + counted.mT) * (1 - torch.eye(K, dtype=torch.long))
    parts = [torch.minimum(torch.randint(0, 11, (SAMPLES, K, K)), counted) for _ in range(2)]
    return Conflicts(counted, *(part.triu(1) + part.triu(1).mT for part in parts))


def rows(conflicts: Conflicts, which: slice) -> Conflicts:
    return Conflicts(conflicts.counted[which], conflicts.in_range[which], conflicts.in_null[which])


@pytest.mark.parametrize("sizes", [(12,), (5, 7), (1,) * 12])
def test_sums_over_batches_are_the_formulas(sizes: tuple[int, ...]):
    conflicts, sums, start = drawn_conflicts(), RateSums(K), 0
    for size in sizes:
        sums.add(rows(conflicts, slice(start, start + size)), [0, 1, 2], torch.full((size,), 10))
        start += size
    for space, inside in enumerate([conflicts.in_range, conflicts.in_null]):
        for i in range(K):
            for j in range(K):
                n, c = conflicts.counted[:, i, j].double(), inside[:, i, j].double()
                if i == j:
                    assert sums.rates()[space, i, j] == sums.errors()[space, i, j] == 0
                    continue
                rate, units = c.sum() / n.sum(), int((n > 0).sum())
                error = (units / (units - 1) * (c - rate * n).square().sum()).sqrt() / n.sum()
                assert sums.rates()[space, i, j].item() == pytest.approx(rate.item(), abs=1e-12)
                assert sums.errors()[space, i, j].item() == pytest.approx(error.item(), abs=1e-12)
    left_out = 1 - conflicts.counted.sum().item() / (SAMPLES * 10 * K * (K - 1))
    assert sums.zero_share() == pytest.approx(left_out, abs=1e-12)


def test_tasks_present_in_a_batch_are_counted_in_their_places():
    conflicts, sums = drawn_conflicts(), RateSums(4)
    sums.add(conflicts, [3, 0, 1], torch.full((SAMPLES,), 10))
    assert sums.counted[3, 1] == conflicts.counted[:, 0, 2].sum()
    assert not sums.counted[2].any()
    assert not sums.rates()[:, 2].any()


def test_one_sample_has_no_finite_error_and_nothing_counted_no_share():
    assert RateSums(2).zero_share() == 0
    one = torch.tensor([[[0, 3], [3, 0]]])
    sums = RateSums(2)
    sums.add(Conflicts(one, one, 0 * one), [0, 1], torch.tensor([3]))
    assert sums.errors()[0, 0, 1] == math.inf
    assert sums.rates()[:, 0, 1].tolist() == [1, 0]
    assert sums.zero_share() == 0


def test_what_was_not_counted_is_not_a_number_and_the_diagonal_is_zero():
    conflicts, sums = drawn_conflicts(), RateSums(4)
    sums.add(conflicts, [3, 0, 1], torch.full((SAMPLES,), 10))
    found, rates = sums.rates_or_nan(), sums.rates()
    for i in range(4):
        for j in range(4):
            if i == j:
                assert found[:, i, j].tolist() == [0, 0]
            elif 2 in (i, j):
                assert found[:, i, j].isnan().all()
            else:
                assert torch.equal(found[:, i, j], rates[:, i, j])
    assert sums.tokens().tolist() == [10 * SAMPLES, 10 * SAMPLES, 0, 10 * SAMPLES]


def test_one_token_is_enough_for_a_rate():
    one, sums = torch.tensor([[[0, 1], [1, 0]]]), RateSums(2)
    sums.add(Conflicts(one, one, 0 * one), [0, 1], torch.tensor([1]))
    assert sums.rates_or_nan()[:, 0, 1].tolist() == [1, 0]


def test_sums_of_two_processes_add_up_to_those_of_both():
    conflicts, both, apart = drawn_conflicts(), RateSums(K), [RateSums(K), RateSums(K)]
    both.add(conflicts, [0, 1, 2], torch.full((SAMPLES,), 10))
    for own, which in zip(apart, (slice(0, 5), slice(5, SAMPLES)), strict=True):
        own.add(rows(conflicts, which), [0, 1, 2], torch.full((which.stop - which.start,), 10))
    for whole, one, other in zip(both.sums(), *(own.sums() for own in apart), strict=True):
        assert whole.dtype == torch.float64
        assert whole.any()
        assert torch.equal(whole, one + other)
    for tensor in apart[0].sums():
        tensor.zero_()
    assert not apart[0].rates().any()
    assert apart[0].zero_share() == 0
    assert all(not tensor.any() for tensor in vars(apart[0]).values())


def test_intervals_hold_the_true_rate_as_often_as_they_say():
    """Tokens of one sample conflict together with a probability of the sample's own; 400 analyses of 40 samples."""
    held, level = 0, 0.9
    for _ in range(400):
        own = torch.rand(40)
        conflicting = torch.binomial(torch.full((40,), 6.0), own).long()
        pair = torch.tensor([[0, 1], [1, 0]])
        sums = RateSums(2)
        counts = Conflicts(6 * pair.expand(40, 2, 2), conflicting.view(-1, 1, 1) * pair, 0 * pair.expand(40, 2, 2))
        sums.add(counts, [0, 1], torch.full((40,), 6))
        halfwidth = normal_quantile(level) * sums.errors()[0, 0, 1]
        held += bool((sums.rates()[0, 0, 1] - 0.5).abs() <= halfwidth)
    assert 0.86 <= held / 400 <= 0.94


def space_of(p: int = 5) -> TokenSpace:
    return token_space(torch.cov(torch.randn(p, 40, dtype=torch.float64)) + 3 * torch.ones(p, p).double(), 10.0)


@pytest.mark.parametrize(("m", "n"), [(7, 4), (3, 2), (1, 5), (3, 1)])
def test_the_disjoint_rate_is_a_double_loop(m: int, n: int):
    space, one, two = space_of(), torch.randn(m, 5, dtype=torch.float64), torch.randn(n, 5, dtype=torch.float64)
    if m > 1:
        one[1] = 0  # left out
    rates, errors = disjoint_rate(one, two, space)
    assert rates.dtype == errors.dtype == torch.float64
    for place, basis in enumerate([space.range_basis, space.null_basis]):
        signs = [[float((h @ basis) @ (g @ basis) <= 0) for g in two] for h in one if h.any()]
        table = torch.tensor(signs, dtype=torch.float64)
        assert rates[place].item() == pytest.approx(table.mean().item(), abs=1e-12)
        if min(table.shape) > 1:
            variance = table.mean(1).var() / len(table) + table.mean(0).var() / table.shape[1]
            assert errors[place].item() == pytest.approx(variance.sqrt().item(), abs=1e-12)
        else:
            assert errors[place] == math.inf


def test_the_disjoint_rate_of_nothing_is_unknown():
    rates, errors = disjoint_rate(torch.zeros(2, 5), torch.randn(3, 5), space_of())
    assert rates.tolist() == [0, 0]
    assert errors.tolist() == [math.inf, math.inf]
    assert rates.dtype == errors.dtype == torch.float64


def test_gradients_at_a_right_angle_conflict_though_they_share_no_input():
    plane = TokenSpace(torch.eye(2), 1, torch.ones(2))
    assert disjoint_rate(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), plane)[0].tolist() == [1, 1]
    assert disjoint_rate(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 1.0]]), plane)[0].tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_size_of_a_gradient_changes_no_conflict(scale: float):
    space, gradients = space_of(), torch.randn(4, 6, K, 5)
    plain, scaled = count_conflicts(gradients, space), count_conflicts(gradients * scale, space)
    for name in ("counted", "in_range", "in_null"):
        assert torch.equal(getattr(plain, name), getattr(scaled, name))
