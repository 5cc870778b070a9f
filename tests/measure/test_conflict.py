"""What one block's gradients say does not depend on how many tokens are compared at once."""

from __future__ import annotations

import pytest
import torch

from dtme.measure import conflict
from dtme.measure.conflict import (
    Comparison,
    comparable,
    compare,
    count_conflicts,
    mismatch_samples,
    multiply_projected,
    scale_to_unit,
)
from dtme.measure.token_space import TokenSpace, token_space


@pytest.mark.parametrize("tokens_at_once", [1, 3, 7, 100])
@pytest.mark.parametrize(("samples", "tasks"), [(4, 3), (1, 2), (2, 5)])
def test_a_few_tokens_at_a_time_say_what_all_say(
    samples: int, tasks: int, tokens_at_once: int, monkeypatch: pytest.MonkeyPatch
):
    draw = torch.Generator().manual_seed(0)
    gradients = torch.randn(tasks, samples, 11, 6, generator=draw, dtype=torch.float64)
    gradients[:, :, -2:] = 0  # padding
    moment = torch.randn(20, 6, generator=draw, dtype=torch.float64)
    space = token_space(moment.T @ moment, 2.0)
    monkeypatch.setattr(conflict, "AT_ONCE", {"cpu": tokens_at_once * samples * tasks * 6, "cuda": 1})
    found = compare(list(gradients), space)
    stacked = gradients.permute(1, 2, 0, 3)
    whole, shuffled = count_conflicts(stacked, space), count_conflicts(mismatch_samples(stacked), space)
    apart = comparable(samples, tasks)
    for name in ("counted", "in_range", "in_null"):
        assert torch.equal(getattr(found.conflicts, name), getattr(whole, name))
        assert torch.equal(getattr(found.chance, name), getattr(shuffled, name) * apart)
    torch.testing.assert_close(found.energy, gradients.square().sum((1, 2, 3)))
    assert whole.in_range.sum() > 0


def test_no_more_is_compared_at_once_than_is_said(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    whole = conflict._compare_all

    def watched(gradients: torch.Tensor, space: object) -> Comparison:
        sizes.append(gradients.numel())
        return whole(gradients, space)  # type: ignore[arg-type]

    monkeypatch.setattr(conflict, "AT_ONCE", {"cpu": 100, "cuda": 1})
    monkeypatch.setattr(conflict, "_compare_all", watched)
    space = token_space(torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.1])), 2.0)
    compare([torch.ones(2, 9, 4), torch.ones(2, 9, 4)], space)  # 16 numbers a token
    assert sizes == [96, 48]


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_products_are_those_after_projection_whichever_space_is_the_smaller(rank: int):
    draw = torch.Generator().manual_seed(rank)
    basis = torch.linalg.qr(torch.randn(5, 5, generator=draw, dtype=torch.float64)).Q
    space, gradients = (
        TokenSpace(basis, rank, torch.ones(5)),
        torch.randn(2, 3, 4, 5, generator=draw, dtype=torch.float64),
    )
    gradients[0, 1, 2] = gradients[0, 1, 2] @ space.range_basis @ space.range_basis.T  # nothing in the null space
    gradients[1, 0] = gradients[1, 0] @ space.null_basis @ space.null_basis.T
    for found, own in zip(multiply_projected(gradients, space), (space.range_basis, space.null_basis), strict=True):
        projected = gradients @ own @ own.T
        torch.testing.assert_close(found, projected @ projected.mT, rtol=1e-9, atol=1e-15)


def test_differences_at_the_level_of_rounding_are_taken_directly():
    """Every product in the null space is 2^-40; the difference of the others, in float32, is zero or some 2^-24."""
    draw = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 2, 4, generator=draw)
    gradients[..., 3] = 2.0**-20
    space = TokenSpace(torch.eye(4), 3, torch.ones(4))
    assert (multiply_projected(gradients, space)[1] == 2.0**-40).all()  # the null space is the smaller: it comes first
    turned = TokenSpace(torch.eye(4).roll(1, 1), 1, torch.ones(4))
    assert (multiply_projected(gradients, turned)[0] == 2.0**-40).all()
    wide = gradients.clone()
    wide[..., 1:3] = 0
    whole = TokenSpace(torch.eye(4), 1, torch.ones(4))  # the range space is the smaller, the null space what is left
    torch.testing.assert_close(multiply_projected(wide, whole)[1], torch.full((6, 2, 2), 2.0**-40), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_are_scaled_in_their_own_type_but_never_below_float32(dtype: torch.dtype):
    scaled, alive = scale_to_unit(torch.tensor([[0.5, -0.25], [0.0, 0.0], [3.0, 1.0]], dtype=dtype))
    assert scaled.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert scaled[:2].tolist() == [[1.0, -0.5], [0.0, 0.0]]
    assert float(scaled[2, 1]) == pytest.approx(1 / 3, rel=1e-6)  # and not 0.333 of float16
    assert alive.tolist() == [True, False, True]


def test_a_task_is_taken_from_as_many_samples_further_on_as_its_place_says():
    gradients = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 4, 1)  # the sample's number
    assert mismatch_samples(gradients)[:, 0, :, 0].tolist() == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]]
    assert comparable(3, 4).tolist() == [
        [False, True, True, False],
        [True, False, True, True],
        [True, True, False, True],
        [False, True, True, False],
    ]


def test_energy_is_the_sum_of_squares_in_float64():
    gradients = [torch.full((2, 3, 2), 1e20), torch.full((2, 3, 2), 2.0)]  # squares of 1e20 are beyond float32
    space = TokenSpace(torch.eye(2), 1, torch.ones(2))
    energy = compare(gradients, space).energy
    assert energy.dtype == torch.float64
    assert energy.tolist() == pytest.approx([12e40, 48.0])


def test_all_that_fits_is_compared_at_once_and_one_token_at_least(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    whole = conflict._compare_all

    def watched(gradients: torch.Tensor, space: TokenSpace) -> Comparison:
        sizes.append(gradients.shape[1])
        return whole(gradients, space)

    monkeypatch.setattr(conflict, "_compare_all", watched)
    space = TokenSpace(torch.eye(4), 1, torch.ones(4))
    gradients = [torch.ones(2, 5, 4), torch.ones(2, 5, 4)]
    for most, expected in ((16 * 5, [5]), (16 * 2, [2, 2, 1]), (15, [1] * 5), (0, [1] * 5)):
        monkeypatch.setattr(conflict, "AT_ONCE", {"cpu": most, "cuda": 1})
        sizes.clear()
        compare(gradients, space)
        assert sizes == expected
    monkeypatch.setattr(conflict, "AT_ONCE", {"cuda": 16 * 3})  # of other devices
    sizes.clear()
    compare(gradients, space)
    assert sizes == [3, 2]
