"""Second moments and the split of the channels, held to numbers worked out on paper."""

from __future__ import annotations

import pytest
import torch

from dtme.measure.moments import _checked_space
from dtme.measure.token_space import TokenSpace, second_moment, token_space


def test_the_second_moment_is_the_sum_of_outer_products_of_all_tokens_of_all_samples():
    tokens = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [1.0, -1.0]]])
    found = second_moment(tokens)
    assert found.dtype == torch.float64
    assert found.tolist() == [[1 + 0 + 9 + 1, 2 + 0 + 0 - 1], [2 + 0 + 0 - 1, 4 + 1 + 0 + 1]]


def test_products_are_taken_in_the_type_of_the_tokens_but_never_below_float32():
    assert second_moment(torch.full((1, 1, 2), 1 + 2.0**-40, dtype=torch.float64))[0, 0] == (1 + 2.0**-40) ** 2
    half = second_moment(torch.full((1, 8, 2), 300.0, dtype=torch.float16))
    assert half.tolist() == [[720_000.0] * 2] * 2  # beyond float16, whose largest number is 65,504
    assert second_moment(torch.full((1, 1, 2), 1.0078125, dtype=torch.bfloat16))[0, 0] == 1.0078125**2


def test_the_spectrum_goes_evenly_from_the_strongest_direction_to_the_weakest():
    space = TokenSpace(torch.eye(5), 2, torch.tensor([8.0, 6.0, 4.0, 2.0, 1.0]))
    assert space.sample_energy(5).tolist() == [1.0, 0.75, 0.5, 0.25, 0.125]
    assert space.sample_energy(3).tolist() == [1.0, 0.5, 0.125]
    assert space.sample_energy(2).tolist() == [1.0, 0.125]
    assert space.sample_energy(9).tolist() == [1.0, 1.0, 0.75, 0.5, 0.5, 0.5, 0.25, 0.125, 0.125]  # halves to even
    assert space.sample_energy(3).dtype == torch.float64


def test_a_basis_is_split_behind_the_rank():
    space = TokenSpace(torch.eye(3), 1, torch.ones(3))
    assert space.range_basis.tolist() == [[1.0], [0.0], [0.0]]
    assert space.null_basis.tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]


def test_directions_come_by_falling_energy_and_none_is_below_zero():
    turned = torch.tensor([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    moment = turned @ torch.diag(torch.tensor([0.25, 4.0, 1e-30], dtype=torch.float64)) @ turned.T
    space = token_space(moment - 1e-18 * torch.eye(3), 1.0)
    torch.testing.assert_close(space.energy, torch.tensor([4.0, 0.25, 0.0], dtype=torch.float64))
    assert float(space.energy.min()) == 0
    strongest = space.basis[:, 0]
    torch.testing.assert_close(strongest.abs(), turned[:, 1].abs())


def test_a_moment_of_float32_is_split_in_float64():
    space = token_space(torch.diag(torch.tensor([1.0, 3.0])), 10.0)
    assert space.energy.dtype == space.basis.dtype == torch.float64


@pytest.mark.parametrize(
    ("energies", "ratio", "rank"),
    [
        ((8.0, 1.0, 1.0), 4.0, 1),  # 8 / 2 is 4: still within
        ((8.0, 1.0, 1.0), 9.0, 2),  # 9 / 1
        ((2.0, 2.0, 2.0, 2.0), 1.0, 2),
        ((2.0, 2.0, 2.0, 2.0), 0.2, 1),  # 2 / 6 is more already; one at least
        ((5.0, 0.0, 0.0), 100.0, 1),  # nothing is left behind the first, and nothing is within any ratio of nothing
        ((1.0, 1.0, 1.0), 1e9, 2),  # one is always left
        ((1.0, 1.0), 1.0, 1),
    ],
)
def test_the_rank_by_hand(energies: tuple[float, ...], ratio: float, rank: int):
    moment = torch.diag(torch.tensor(energies, dtype=torch.float64))
    assert token_space(moment, ratio).rank == rank
    assert token_space(1000 * moment, ratio).rank == rank


@pytest.mark.parametrize(
    ("moment", "says"),
    [
        (torch.ones(1, 1), "block 'blocks.3' are all zero or of one channel"),
        (torch.zeros(3, 3), "block 'blocks.3' are all zero or of one channel"),
        (torch.full((2, 2), float("inf")), "enter block 'blocks.3' are not finite"),
        (torch.full((2, 2), float("nan")), "enter block 'blocks.3' are not finite"),
    ],
)
def test_tokens_that_span_no_space_are_refused_by_the_block(moment: torch.Tensor, says: str):
    with pytest.raises(ValueError, match=says):
        _checked_space("blocks.3", moment.double(), 100.0)
    assert _checked_space("blocks.3", torch.eye(2).double(), 100.0).rank == 1
