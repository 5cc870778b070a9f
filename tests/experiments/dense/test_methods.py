"""What each method of the table inserts, and that controls differ from it in nothing but what they control."""

import pytest
import torch

from dtme.plan.cost import BlockFlops, ModelFlops
from dtme.report.report import ConflictReport
from experiments.dense.methods import METHODS
from experiments.dense.recipe import Recipe
from experiments.methods.placements import at_random_behind_the_same_block
from experiments.runs.by_name import method_of

RECIPE = Recipe()
TASKS = ("a", "b", "c")


def report(scores_range: list[float], scores_null: list[float]) -> ConflictReport:
    depth = len(scores_range)
    flops = {f"trunk.blocks.{d}": BlockFlops(100, task_tokens=(4, 0), updates=(1, 0)) for d in range(depth)}
    apart = 1 - torch.eye(len(TASKS))
    rates = [torch.tensor(scores).view(-1, 1, 1) * apart for scores in (scores_range, scores_null)]
    return ConflictReport(
        TASKS,
        tuple(f"trunk.blocks.{d}" for d in range(depth)),
        (8,) * depth,
        (3,) * depth,
        *rates,
        *[torch.zeros_like(rates[0])] * 2,
        9,
        tuple(tuple("" if a == b else "shared" for b in TASKS) for a in TASKS),
        (0.0,) * depth,
        100.0,
        0.95,
        flops=ModelFlops(200, flops),
    )


FOUND = report([0.1, 0.2, 0.6, 0.5, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def places(placement) -> list[int]:
    return [int(name.rpartition(".")[2]) for name in placement]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_plan_can_be_made_and_serves_all_tasks(method):
    if method.plan is None:
        return
    plan = method.plan(FOUND, RECIPE, 0)
    assert plan.tasks == TASKS
    assert plan.blocks
    shared = "within" in method.name  # on a budget, tasks share a stream
    for placement in (plan.modulate, plan.expand, plan.adapt):
        assert all(set(tasks) <= set(TASKS) and (shared or tasks == TASKS) for tasks in placement.values())


def test_names_occur_once_and_a_method_that_lasts_as_long_as_another_names_one():
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names)
    assert all(method.lasts[0] in names for method in METHODS if method.lasts is not None)


def test_a_wrong_name_lists_all():
    with pytest.raises(ValueError, match=r"no 'TN'.*TM\+TE"):
        method_of("TN")


def test_blocks_by_conflict_and_their_opposites():
    plan = method_of("TM+TE").plan(FOUND, RECIPE, 0)
    assert (places(plan.modulate), places(plan.expand)) == ([2, 3, 5], [3, 4, 5])
    plan = method_of("TM+TE swapped").plan(FOUND, RECIPE, 0)
    assert (places(plan.modulate), places(plan.expand)) == ([3, 4, 5], [2, 3, 5])
    plan = method_of("TM+TE last").plan(FOUND, RECIPE, 0)
    assert (places(plan.modulate), places(plan.expand)) == ([3, 4, 5], [3, 4, 5])
    plan = method_of("Adapt last block").plan(FOUND, RECIPE, 0)
    assert (places(plan.modulate), places(plan.adapt), plan.rank) == ([], [5], 4)
    assert method_of("Adapt r16 last block").plan(FOUND, RECIPE, 0).rank == 16


@pytest.mark.parametrize("seed", range(20))
def test_random_placement_at_the_same_cost_parts_where_the_method_parts(seed: int):
    plan = at_random_behind_the_same_block(FOUND, RECIPE, seed)
    assert min(places(plan.blocks)) == 2
    assert len(plan.modulate) == len(plan.expand) == 3


def test_random_placement_at_the_same_cost_varies_with_the_seed():
    drawn = {str(at_random_behind_the_same_block(FOUND, RECIPE, seed)) for seed in range(20)}
    assert len(drawn) > 4
    assert at_random_behind_the_same_block(FOUND, RECIPE, 3) == at_random_behind_the_same_block(FOUND, RECIPE, 3)


def test_other_tasks_get_the_streams_at_the_same_cost():
    plan, other = (
        method_of(name).plan(FOUND, RECIPE, 0) for name in ("Adapt within 1.5 x", "Adapt within 1.5 x, other tasks")
    )
    assert plan.adapt.keys() == other.adapt.keys()
    assert [len(tasks) for tasks in plan.adapt.values()] == [len(tasks) for tasks in other.adapt.values()]
    assert plan.adapt != other.adapt
