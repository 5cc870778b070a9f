"""What one block's gradients say does not depend on how many tokens are compared at once."""

from __future__ import annotations

import pytest
import torch

from dtme.measure import conflict
from dtme.measure.conflict import Comparison, comparable, compare, count_conflicts, mismatch_samples
from dtme.measure.token_space import token_space


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
