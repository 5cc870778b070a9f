"""The price of a plan by arithmetic, held against sums by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dtme.plan.cost import BlockFlops, Cost, ModelFlops, price
from dtme.plan.plan import Plan

TASKS = ("a", "b", "c")
BLOCK = BlockFlops(100, shared=7, behind=5, task_tokens=(10, 1), updates=(4, 2))
FLOPS = ModelFlops(50, dict.fromkeys(("x.0", "x.1", "x.2"), BLOCK))
PLAIN = 50 + 3 * (7 + 100 + 5)


def costs(**placed: Any) -> int:
    return price(Plan(TASKS, **placed), FLOPS).flops - PLAIN


def test_a_plan_of_nothing_costs_nothing():
    assert price(Plan(TASKS), FLOPS) == Cost(PLAIN, PLAIN, {"x.0": 1, "x.1": 1, "x.2": 1})


def test_a_stream_pays_for_every_block_from_where_it_parts_and_for_what_follows_it():
    assert costs(modulate={"x.2": ("a",)}) == 105
    assert costs(modulate={"x.1": ("a",)}) == 2 * 105
    assert costs(modulate={"x.1": ("a",), "x.2": ("b",)}) == 2 * 105 + 105
    assert costs(modulate={"x.0": TASKS}) == 2 * 3 * 105


def test_task_tokens_lengthen_their_own_streams_which_run_apart_from_the_others():
    two = 10 * 2 + 2**2
    assert costs(expand={"x.2": TASKS}, tokens_per_task=2) == 2 * 105 + 3 * two
    assert costs(expand={"x.2": ("a",)}, tokens_per_task=2) == 105 + two + 7  # what is shared is made for either
    assert costs(expand={"x.1": ("a",)}) == 2 * 105 + 11 + 7


def test_joint_tokens_lengthen_the_one_stream_of_all():
    assert costs(expand={"x.2": ("a", "c")}, tokens_per_task=2, joint_tokens=True) == 10 * 4 + 4**2


def test_updates_are_made_in_all_streams_that_run_together():
    assert costs(adapt={"x.2": ("a",)}, rank=5) == 105 + 2 * 5 * 4
    assert costs(adapt={"x.2": TASKS}, rank=5) == 2 * 105 + 3 * 5 * 4
    both = costs(adapt={"x.2": ("a",)}, expand={"x.2": ("a",)}, rank=5)
    assert both == 105 + 7 + 11 + 5 * (4 + 2)  # the stream without tokens has no update either


def test_a_copy_runs_in_the_place_of_the_block_and_makes_what_is_shared_for_itself():
    assert costs(copies={"x.2": ("a",)}) == 105 + 7
    assert costs(copies={"x.2": TASKS}) == 2 * 105 + 2 * 7


def with_parts(*, behind: int = 0, last: bool = True) -> ModelFlops:
    part = BlockFlops(60, behind=behind, updates=(3, 0), task_tokens=(6, 0), last=last)
    return ModelFlops(50, {"x.0": BlockFlops(100), "x.1": BlockFlops(100, parts={"x.1.mlp": part}, behind=5)})


@pytest.mark.parametrize(("behind", "last"), [(0, True), (20, True), (0, False)])
def test_streams_part_in_the_last_part_of_a_block_where_none_has_parted(behind: int, last: bool):
    flops = with_parts(behind=behind, last=last)
    late = price(Plan(TASKS, adapt={"x.1.mlp": TASKS}, rank=2), flops)
    once = 0 if last else 40 - behind  # in front of the part
    assert late.flops - flops.plain == 2 * (60 + behind + once + 5) + 3 * 2 * 3
    assert late.streams == {"x.0": 1, "x.1": 3}
    parted = price(Plan(TASKS, {"x.0": ("a",)}, adapt={"x.1.mlp": TASKS}, rank=2), flops)
    assert parted.flops - flops.plain == 100 + 2 * 105 + 3 * 2 * 3
    whole = price(Plan(TASKS, adapt={"x.1.mlp": TASKS}, copies={"x.0": ("a",)}, rank=2), flops)
    assert whole == parted


def test_task_tokens_around_a_part_are_in_it():
    flops = ModelFlops(
        0,
        {
            "x.0": BlockFlops(
                100, task_tokens=(10, 0), parts={"x.0.mlp": BlockFlops(60, task_tokens=(6, 0), updates=(3, 1))}
            )
        },
    )
    plan = Plan(TASKS, expand={"x.0": TASKS}, adapt={"x.0.mlp": TASKS}, tokens_per_task=2, rank=5)
    assert price(plan, flops).flops == 3 * (100 + 20 + 5 * (3 + 2))


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"block 'x\.2\.attn' did not run by itself .* x\.0, x\.1, x\.2\. dtme\.cost"):
        price(Plan(TASKS, {"x.2.attn": TASKS}), FLOPS)
    closed = ModelFlops(0, {"x.0": BlockFlops(100, refusals={"expand": "Windows."})})
    with pytest.raises(ValueError, match=r"block 'x\.0' cannot take what is planned there\. Windows\."):
        price(Plan(TASKS, expand={"x.0": TASKS}), closed)
    with pytest.raises(ValueError, match=r"adapt: this block takes none"):
        price(Plan(TASKS, adapt={"x.0": TASKS}), closed)
    with pytest.raises(ValueError, match=r"adapt_layers='mlp.*': .*all linear layers.* dtme\.cost"):
        price(Plan(TASKS, adapt={"x.0": TASKS}, adapt_layers="mlp.*"), FLOPS)


def test_flops_come_back_from_json():
    flops = with_parts(behind=3)
    again = ModelFlops.from_dict(json.loads(json.dumps(flops.to_dict())))
    assert again == flops
    assert isinstance(again.blocks["x.1"].parts["x.1.mlp"].updates, tuple)
