"""The core held to numbers worked out on paper, each of which a small slip of the code would change."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import tiny_vit
from torch import Tensor, nn

import dtme
from dtme.inserts.low_rank import LowRank
from dtme.inserts.modulation import TokenStatistics, modulate
from dtme.measure.conflict import count_conflicts, multiply_projected, scale_to_unit
from dtme.measure.rates import RateSums
from dtme.measure.token_space import TokenSpace, token_space

PLANE = TokenSpace(torch.eye(2), 1, torch.ones(2))
"""The first channel is the range space, the second the null space."""


def counts(*gradients: tuple[float, float]) -> tuple[int, int, int]:
    """Compared, and in conflict in range and null space, of the pair of two tasks at one token."""
    found = count_conflicts(torch.tensor(gradients).view(1, 1, 2, 2), PLANE)
    return int(found.counted[0, 0, 1]), int(found.in_range[0, 0, 1]), int(found.in_null[0, 0, 1])


def test_gradients_at_a_right_angle_conflict_in_both_spaces():
    assert counts((1.0, 0.0), (0.0, 1.0)) == (1, 1, 1)  # 1 * 0 and 0 * 1: neither is above zero
    assert counts((1.0, 1.0), (1.0, 1.0)) == (1, 0, 0)
    assert counts((1.0, 1.0), (1.0, -1.0)) == (1, 0, 1)
    assert counts((1.0, 1.0), (0.0, 0.0)) == (0, 0, 0)


def test_a_task_is_no_pair_with_itself():
    found = count_conflicts(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).view(1, 1, 2, 2), PLANE)
    assert found.counted[0].tolist() == [[0, 1], [1, 0]]
    assert found.in_null[0].tolist() == [[0, 1], [1, 0]]


def test_the_share_left_out_is_that_of_pairs_of_two():
    """Four tokens, and the second task has no gradient at one of them: one pair of four is left out."""
    gradients = torch.ones(1, 4, 2, 2)
    gradients[0, 3, 1] = 0
    sums = RateSums(2)
    sums.add(count_conflicts(gradients, PLANE), [0, 1], torch.tensor([4]))
    assert sums.zero_share() == 0.25


def test_a_product_that_cancels_is_taken_directly():
    """1 + 1e-10 is 1 in float32: the null space's product, 1e-10, is lost in the difference of the two others."""
    gradients = torch.tensor([[1.0, 1e-5], [1.0, 1e-5]])
    in_range, in_null = multiply_projected(gradients, PLANE)
    assert in_range[0, 1] == 1
    assert float(in_null[0, 1]) == pytest.approx(1e-10, rel=1e-5)
    assert counts((1.0, 1e-5), (1.0, 1e-5)) == (1, 0, 0)
    assert counts((1.0, 1e-5), (1.0, -1e-5)) == (1, 0, 1)


def test_a_gradient_is_measured_by_its_own_largest_magnitude():
    """Squares of 1e-30 are zero in float32; over its largest magnitude, -4e-30, the gradient is (0.75, -1)."""
    scaled, alive = scale_to_unit(torch.tensor([[3e-30, -4e-30], [0.0, 0.0]]))
    torch.testing.assert_close(scaled, torch.tensor([[0.75, -1.0], [0.0, 0.0]]))
    assert alive.tolist() == [True, False]
    assert counts((3e-30, 4e-30), (3e-30, -4e-30)) == (1, 0, 1)


def test_the_rank_is_the_largest_whose_energy_is_within_the_ratio():
    """Energies 8, 1, 1: 8 / 2 = 4 and 9 / 1 = 9. A ratio of 4 is reached by one channel, of 9 by two, of 3 by none."""
    moment = torch.diag(torch.tensor([1.0, 8.0, 1.0], dtype=torch.float64))
    assert [token_space(moment, ratio).rank for ratio in (3.0, 4.0, 8.9, 9.1)] == [1, 1, 1, 2]


def test_one_token_under_batch_norm_is_normalised_by_what_was_learnt_before():
    statistics = TokenStatistics(1, 2, like=torch.zeros(())).train()
    statistics.mean.copy_(torch.tensor([[1.0, 2.0]]))
    statistics.variance.copy_(torch.tensor([[4.0, 1.0]]))
    normed = statistics(torch.tensor([[[3.0, 2.0]]]), 0)
    torch.testing.assert_close(normed, torch.tensor([[[2 / math.sqrt(4 + 1e-5), 0.0]]]))
    assert statistics.mean.tolist() == [[1.0, 2.0]]  # one token says nothing of a variance
    two = statistics(torch.tensor([[[3.0, 2.0], [5.0, 2.0]]]), 0)
    torch.testing.assert_close(two, torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(statistics.mean, torch.tensor([[1.0 + 0.1 * (4 - 1), 2.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_modulation_gives_back_the_type_that_it_was_given(dtype: torch.dtype):
    tokens = torch.tensor([[1.0, 2.0]], dtype=dtype)
    found = modulate(tokens, torch.tensor([2.0, 3.0]), torch.tensor([0.5, -1.0]))
    assert found.dtype == dtype
    assert found.tolist() == [[2.5, 5.0]]


def test_a_low_rank_update_begins_as_a_linear_layer_does_and_changes_nothing():
    linear: Any = SimpleNamespace(in_features=400, out_features=3)
    torch.manual_seed(0)
    update = LowRank(2, linear, 8, torch.zeros(()))
    bound = 1 / 20  # 1 / sqrt(400)
    assert float(update.down.detach().abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(update.down.detach().abs().max()) <= bound
    assert float(update.down.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not update.up.any()


class Reading(nn.Module):
    """A head that is told nothing but its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 1)

    def forward(self, tokens: Tensor, batch_size: int) -> Tensor:
        return self.project(tokens)


def two_tasks() -> nn.Module:
    model = tiny_vit(("depth", "semseg"))
    model.heads = nn.ModuleDict({"depth": Reading(), "semseg": Reading()})
    return dtme.apply(model, dtme.Plan(("depth", "semseg"), modulate={"blocks.1": ("depth", "semseg")}))


def test_the_branch_of_a_task_that_is_not_computed_is_given_no_rows():
    model = two_tasks()
    with dtme.tasks(model, "semseg"):
        found = model(torch.zeros(2, 3, 16, 16))
    assert {task: tuple(output.shape) for task, output in found.items()} == {"depth": (0, 5, 1), "semseg": (2, 5, 1)}


@pytest.mark.parametrize(("rows", "says"), [([-1, 0], r"holds -1\.\.0"), ([0, 2], r"holds 0\.\.2")])
def test_rows_are_told_by_places_that_there_are(rows: list[int], says: str):
    model = two_tasks()
    with pytest.raises(ValueError, match=says), dtme.tasks(model, per_sample=torch.tensor(rows)):
        model(torch.zeros(2, 3, 16, 16))
