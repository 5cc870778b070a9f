"""Plans are made from rates alone: a report adds nothing that they read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reports import rates, report_of

import dtme
from dtme.plan.budget import choose_within, find_steps
from dtme.plan.cost import BlockFlops, ModelFlops
from dtme.plan.placement import Inserts, place_inserts, share_of
from dtme.plan.rates import ConflictRates
from dtme.plan.recommended import recommend


def both() -> tuple[ConflictRates, dtme.ConflictReport]:
    """The same measurement as bare rates and as a report."""
    flops = ModelFlops(
        50, {f"blocks.{place}": BlockFlops(100, task_tokens=(3, 1), updates=(2, 0)) for place in range(4)}
    )
    report = report_of(rates([0.4, 0.1, 0.3, 0.2]), rates([0.1, 0.2, 0.3, 0.4]), flops=flops)
    return ConflictRates(**vars(report)), report


def test_a_report_plans_as_its_rates_do():
    known, report = both()
    assert not hasattr(known, "plan")
    assert place_inserts(known, Inserts(0.25)) == report.plan(fraction=0.25)
    assert place_inserts(known, Inserts(), "random", seed=3) == report.plan(select="random", seed=3)
    assert choose_within(find_steps(known, Inserts()), 2.0) == report.plan(max_cost=2.0)
    assert recommend(known, None, 12) == report.recommended()


@pytest.mark.parametrize(
    ("select", "modulated", "expanded"),
    [
        ("conflict", "blocks.0", "blocks.3"),
        ("reversed", "blocks.1", "blocks.0"),
        ("swapped", "blocks.3", "blocks.0"),
    ],
)
def test_each_space_ranks_the_blocks_for_its_own_insert(select: str, modulated: str, expanded: str):
    known, _ = both()
    plan = place_inserts(known, Inserts(0.25), select)
    assert (*plan.modulate, *plan.expand) == (modulated, expanded)


def test_a_threshold_leaves_out_the_tasks_of_peaceful_pairs():
    known, _ = both()
    known.range_rate[0] = torch.tensor([[0.0, 0.9, 0.2], [0.9, 0.0, 0.2], [0.2, 0.2, 0.0]])
    plan = place_inserts(known, Inserts(0.25, expansion=False), threshold=0.5)
    assert plan.modulate == {"blocks.0": ("a", "b")}
    assert not place_inserts(known, Inserts(0.25, expansion=False), threshold=0.95).blocks


@pytest.mark.parametrize(("threshold", "placed"), [(0.0, "abc"), (0.25, "abc"), (0.75, "ab"), (1.0, "")])
def test_a_threshold_is_a_rate_from_which_on_tasks_are_taken(threshold: float, placed: str):
    known, _ = both()
    known.range_rate[0] = torch.tensor([[0.0, 0.75, 0.25], [0.75, 0.0, 0.25], [0.25, 0.25, 0.0]])
    plan = place_inserts(known, Inserts(0.25, expansion=False), threshold=threshold)
    assert plan.modulate.get("blocks.0", ()) == tuple(placed)


@pytest.mark.parametrize("threshold", [-0.01, 1.01, 2.0])
def test_a_threshold_that_is_no_rate_is_refused(threshold: float):
    with pytest.raises(ValueError, match=f"pair_threshold={threshold}: give a rate"):
        place_inserts(both()[0], Inserts(), threshold=threshold)


def test_random_blocks_are_those_of_seed_0_unless_another_is_given():
    known, _ = both()
    assert place_inserts(known, Inserts(0.25), "random") == place_inserts(known, Inserts(0.25), "random", seed=0)
    drawn = {str(place_inserts(known, Inserts(0.25), "random", seed=seed).to_dict()) for seed in range(20)}
    assert len(drawn) > 5


def test_an_insert_of_nothing_and_a_share_of_none_are_refused():
    with pytest.raises(ValueError, match=r"fraction=1\.5: give a share"):
        Inserts(1.5)
    with pytest.raises(ValueError, match="the plan would be empty"):
        Inserts(modulation=False, expansion=False)
    assert Inserts(modulation=False, expansion=False, adaptation=True).adaptation
    with pytest.raises(ValueError, match="select='worst': choose"):
        place_inserts(both()[0], Inserts(), "worst")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("fraction", "blocks", "share"), [(0.5, 12, 6), (0.5, 5, 3), (0.01, 3, 1), (1.0, 7, 7)])
def test_a_share_is_rounded_to_the_nearest_and_never_none(fraction: float, blocks: int, share: int):
    assert share_of(fraction, blocks) == share


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": float("nan")}, "pair_threshold=nan: give a rate"),
        ({"threshold": "0.5"}, "pair_threshold='0.5': give a rate"),
        ({"seed": float("nan"), "select": "random"}, "seed=nan: give a whole number"),
    ],
)
def test_what_is_no_number_is_refused_in_a_sentence(options: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        place_inserts(both()[0], Inserts(), **options)
    with pytest.raises(ValueError, match="fraction=nan: give a share"):
        Inserts(float("nan"))
    with pytest.raises(ValueError, match="fraction='half': give a share"):
        Inserts("half")  # pyright: ignore[reportArgumentType]
