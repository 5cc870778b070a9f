"""Modulators of both kinds on the lanes of a call, however tokens lie and whoever has folded them, against one lane at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dtme.inserts.modulation import TokenStatistics, modulate_lanes
from dtme.streams.folding import part
from dtme.trunk.layout import Layout

LANES, SAMPLES, WIDTH, EPS = 4, 2, 3, 1e-5
GROUPS = (("a",), ("b",), ("c",), ("d",))
LAYOUTS = {
    "samples first": (Layout(0, 1), (0, 1, 2)),
    "positions first": (Layout(1, 0), (1, 0, 2)),
    "channels first": (Layout(0, None, 1), (0, 2, 1)),
}
PLACES = [1, -1, 0, 1]
"""Per lane the row of its task: the second lane's task has no modulator."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state_of(layout: Layout, *, rows: bool = False, within: bool = False) -> Any:
    call = SimpleNamespace(layout=layout)
    return SimpleNamespace(
        call=call, lanes=LANES, groups=GROUPS, within=within, rows=torch.tensor(PLACES) if rows else None
    )


def statistics_of() -> TokenStatistics:
    found = TokenStatistics(2, WIDTH, like=torch.zeros((), dtype=torch.float64)).train()
    found.mean.copy_(drawn(2, WIDTH, seed=5))
    found.variance.copy_(drawn(2, WIDTH, seed=6).square() + 0.5)
    return found


def normed(tokens: Tensor) -> Tensor:
    """By mean and variance of each channel over samples and positions."""
    mean = tokens.mean((0, 1))
    return (tokens - mean) / ((tokens - mean).square().mean((0, 1)) + EPS).sqrt()


def expected(lanes: list[Tensor], scale: Tensor, shift: Tensor, *, together: bool | None) -> list[Tensor]:
    """Each lane with what its task has; `together` where lanes of one task share their statistics, `None` without any."""
    found = []
    for place, tokens in zip(PLACES, lanes, strict=True):
        if place < 0:
            found.append(tokens)
            continue
        if together is not None:
            peers = [own for other, own in zip(PLACES, lanes, strict=True) if other == place]
            wide = normed(torch.cat(peers) if together else tokens)
            start = next(n for n, own in enumerate(peers) if own is tokens) * len(tokens) if together else 0
            tokens = wide[start : start + len(tokens)]
        found.append(tokens * (scale[place] + 1) + shift[place])
    return found


@pytest.mark.parametrize("statistics", [False, True], ids=["affine", "batch norm"])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("way", ["one tensor", "streams", "within", "rows"])
def test_each_lane_is_scaled_and_shifted_by_the_row_of_its_task(way: str, name: str, statistics: bool):
    layout, axes = LAYOUTS[name]
    samples = 1 if way == "rows" else SAMPLES
    lanes = (
        list(drawn(LANES, samples, 5, WIDTH).unbind()) if way != "one tensor" else [drawn(samples, 5, WIDTH)] * LANES
    )
    scale, shift = drawn(2, WIDTH, seed=1), drawn(2, WIDTH, seed=2)
    folded = torch.cat(lanes).permute(axes)
    given: Tensor = {"one tensor": lanes[0].permute(axes), "streams": part(folded, GROUPS, layout.batch)}.get(
        way, folded
    )
    places: Any = torch.tensor(PLACES) if way == "rows" else PLACES
    state = state_of(layout, rows=way == "rows", within=way == "within")
    found = modulate_lanes(given, scale, shift, statistics_of() if statistics else None, places, state)
    if statistics and way == "one tensor":
        lanes = [own.clone() for own in lanes]
    wanted = expected(lanes, scale, shift, together=(way == "rows") if statistics else None)
    torch.testing.assert_close(found, torch.cat(wanted).permute(axes), rtol=1e-9, atol=1e-9)


def test_what_rows_have_seen_is_learnt_by_their_own_task():
    statistics, tokens = statistics_of(), drawn(LANES, 5, WIDTH)
    mean, variance = statistics.mean.clone(), statistics.variance.clone()
    given = torch.zeros(2, WIDTH, dtype=torch.float64)
    modulate_lanes(tokens, given, given, statistics, torch.tensor(PLACES), state_of(Layout(0, 1), rows=True))
    for row, lanes in enumerate(([2], [0, 3])):
        own = tokens[lanes].flatten(0, 1)
        torch.testing.assert_close(statistics.mean[row], 0.9 * mean[row] + 0.1 * own.mean(0))
        torch.testing.assert_close(statistics.variance[row], 0.9 * variance[row] + 0.1 * own.var(0))
    learnt = statistics.mean.clone()
    alone = torch.tensor([1, -1, -1, 1])  # no row of the first task: it learns nothing
    modulate_lanes(tokens, given, given, statistics, alone, state_of(Layout(0, 1), rows=True))
    assert torch.equal(statistics.mean[0], learnt[0])
    assert not torch.equal(statistics.mean[1], learnt[1])


@pytest.mark.parametrize("rows", [False, True])
def test_in_evaluation_each_task_has_what_it_has_learnt(rows: bool):
    statistics, tokens = statistics_of().eval(), drawn(LANES, 5, WIDTH)
    before = statistics.mean.clone()
    given = torch.zeros(2, WIDTH, dtype=torch.float64)
    places: Any = torch.tensor(PLACES) if rows else PLACES
    found = modulate_lanes(tokens, given, given, statistics, places, state_of(Layout(0, 1), rows=rows, within=not rows))
    for lane, place in enumerate(PLACES):
        own = tokens[lane]
        if place >= 0:
            own = (own - statistics.mean[place]) / (statistics.variance[place] + EPS).sqrt()
        torch.testing.assert_close(found[lane], own)
    assert torch.equal(statistics.mean, before)


def test_statistics_begin_with_no_mean_and_unit_variance_and_learn_by_their_momentum():
    statistics = TokenStatistics(1, 2, like=torch.zeros(()), momentum=0.5)
    assert statistics.mean.tolist() == [[0.0, 0.0]]
    assert statistics.variance.tolist() == [[1.0, 1.0]]
    statistics(torch.tensor([[[2.0, 0.0], [4.0, 0.0]]]), 0)
    assert statistics.mean.tolist() == [[1.5, 0.0]]
    assert statistics.variance.tolist() == [[1.5, 0.5]]
    statistics.reset_parameters()
    assert (statistics.mean.tolist(), statistics.variance.tolist()) == ([[0.0, 0.0]], [[1.0, 1.0]])


def test_statistics_give_back_the_type_of_the_tokens():
    statistics = TokenStatistics(1, 2, like=torch.zeros(())).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert statistics(nn.functional.linear(torch.ones(2, 2), torch.eye(2)), 0).dtype == torch.bfloat16
