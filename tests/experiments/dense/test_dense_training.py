"""The training loop: what is paired is paired, what branches off goes on exactly, what a plan adds is trained apart."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import dtme
from experiments.dense.model import build
from experiments.dense.recipe import Recipe
from experiments.dense.suite import Split, Task, data_order
from experiments.dense.training import (
    add_inserts,
    begin,
    evaluate,
    freeze_trunk,
    settle_statistics,
    weigh,
)
from experiments.training.run import Run, schedule, train

RECIPE = Recipe(size=16, width=16, depth=2, attention_heads=2, head_width=8, batch=4, steps=12, expand_at=4, warmup=2)


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target.float()).square().mean()


def make_tasks():
    from torchmetrics import MeanSquaredError

    names = ("bright", "dark")
    return tuple(
        Task(name, 1, squared, MeanSquaredError, "MSE", "signed", weight)
        for name, weight in zip(names, (1.0, 3.0), strict=True)
    )


@pytest.fixture
def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (18, 3, 16, 16), generator=generator, dtype=torch.uint8)
    bright = images.float().mean(1, keepdim=True) / 255
    return Split(images, {"bright": bright, "dark": 1 - bright})


def fresh(split: Split, seed: int = 0, recipe: Recipe = RECIPE) -> Run:
    tasks = make_tasks()
    return begin(build(tasks, recipe, seed), tasks, split, recipe, seed=5)


def go(run: Run, until: int) -> None:
    train(run, until, every=3)


def weights(run: Run) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def test_the_same_seed_trains_the_same_model_and_losses_fall(split: Split):
    one, two = fresh(split), fresh(split)
    go(one, RECIPE.steps)
    go(two, RECIPE.steps)
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(two).values(), strict=True))
    assert one.curves == two.curves
    for points in one.curves.values():
        assert [step for step, _ in points] == [3, 6, 9, 12]
        assert points[-1][1] < points[0][1]


def test_a_run_that_branches_off_goes_on_exactly(split: Split, tmp_path):
    whole, first = fresh(split), fresh(split)
    go(whole, RECIPE.steps)
    go(first, 5)
    torch.save(first.state(), tmp_path / "state.pt")
    second = fresh(split, seed=9)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    go(second, RECIPE.steps)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(second.model.state_dict()[name], tensor, rtol=0, atol=0)
    assert [step for step, _ in second.curves["bright"]] == [3, 6, 9, 12]
    assert second.curves == whole.curves  # a point is a mean over its own steps, before and behind the branch


def test_heads_start_the_same_in_every_row():
    tasks = make_tasks()
    both, alone = build(tasks, RECIPE, 3), build(tasks[1:], RECIPE, 3)
    for mine, other in zip(both.heads["dark"].parameters(), alone.heads["dark"].parameters(), strict=True):
        assert torch.equal(mine, other)
    assert all(torch.equal(a, b) for a, b in zip(both.trunk.parameters(), alone.trunk.parameters(), strict=True))
    assert not torch.equal(both.heads["dark"][0].weight, build(tasks, RECIPE, 4).heads["dark"][0].weight)


def test_expansion_carries_the_optimiser_on_and_gives_new_parameters_a_group(split: Split):
    run = fresh(split)
    go(run, RECIPE.expand_at)
    state = copy.deepcopy(run.optimizer.state_dict()["state"])
    plan = dtme.Plan(("bright", "dark"), {"trunk.blocks.1": ("bright", "dark")}, {"trunk.blocks.1": ("dark",)})
    dtme.apply(run.model, plan)
    add_inserts(run, RECIPE)
    new = run.optimizer.param_groups[-1]
    assert new["weight_decay"] == 0
    assert {id(p) for p in new["params"]} == {id(p) for _, p in dtme.added_parameters(run.model)}
    kept = run.optimizer.state_dict()["state"]
    assert all(torch.equal(state[key]["exp_avg"], kept[key]["exp_avg"]) for key in state)
    before = {name: p.detach().clone() for name, p in dtme.added_parameters(run.model)}
    go(run, RECIPE.steps)
    assert new["lr"] == pytest.approx(RECIPE.insert_rate * run.optimizer.param_groups[0]["lr"])
    assert all(not torch.equal(before[name], p) for name, p in dtme.added_parameters(run.model))


def test_what_is_inserted_may_decay_and_warms_up_from_its_own_step(split: Split):
    run, recipe = fresh(split), replace(RECIPE, insert_decay=0.1, insert_warmup=4)
    go(run, RECIPE.expand_at)
    dtme.apply(run.model, dtme.Plan(("bright", "dark"), {"trunk.blocks.1": ("bright", "dark")}))
    add_inserts(run, recipe, since=run.step)
    new, trunk = run.optimizer.param_groups[-1], run.optimizer.param_groups[0]
    assert new["weight_decay"] == 0.1
    for risen in (0.25, 0.5, 0.75, 1.0, 1.0):
        go(run, run.step + 1)
        assert new["lr"] == pytest.approx(risen * RECIPE.insert_rate * trunk["lr"])


def test_a_frozen_trunk_is_left_out(split: Split):
    run = fresh(split)
    freeze_trunk(run)
    before = copy.deepcopy(run.model.state_dict())
    go(run, 3)
    moved = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("heads.") for name in moved)


def test_statistics_of_batch_norms_are_those_of_the_whole_split(split: Split):
    run = fresh(split)
    go(run, 3)
    momenta = [m.momentum for m in run.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    seen = []
    hook = run.model.heads["dark"][1].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    settle_statistics(run.model, split, batch=len(split))
    hook.remove()
    norm = run.model.heads["dark"][1]
    assert torch.allclose(norm.running_mean, seen[0].mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(norm.running_var, seen[0].var((0, 2, 3)), rtol=1e-4)
    assert not run.model.training
    assert [m.momentum for m in run.model.modules() if isinstance(m, torch.nn.BatchNorm2d)] == momenta


def test_rows_may_train_at_a_share_of_the_rate(split: Split):
    rates = []
    for recipe in (RECIPE, replace(RECIPE, row_rate=0.1)):
        run = fresh(split, recipe=recipe)
        go(run, 1)
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == [pytest.approx(RECIPE.learning_rate * schedule(0, 12, 2, 0.9)), pytest.approx(rates[0] / 10)]


def test_an_expanded_model_is_given_the_same_groups_at_once(split: Split):
    tasks = make_tasks()
    model = dtme.apply(build(tasks, RECIPE, 0), dtme.Plan(("bright", "dark"), {"trunk.blocks.0": ("bright", "dark")}))
    run = begin(model, tasks, split, RECIPE, seed=0)
    made = run.optimizer
    grouped = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in run.model.parameters())
    assert made.param_groups[-1]["rate"] == RECIPE.insert_rate


def test_decay_is_on_matrices_only(split: Split):
    run = fresh(split)
    named = {id(p): name for name, p in run.model.named_parameters()}
    decayed = {named[id(p)] for group in run.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert "trunk.blocks.0.attn.qkv.weight" in decayed
    assert not any(name.endswith("bias") or "norm" in name or "cls_token" in name for name in decayed)


def test_losses_are_weighted():
    losses = {"bright": torch.tensor(2.0), "dark": torch.tensor(0.5)}
    assert {task: loss.item() for task, loss in weigh(losses, make_tasks()).items()} == {"bright": 2.0, "dark": 1.5}


def test_every_epoch_sees_each_sample_once():
    rows = torch.stack(list(data_order(12, 4, 6, seed=0)))
    assert sorted(rows[:3].flatten().tolist()) == sorted(rows[3:].flatten().tolist()) == list(range(12))
    assert rows[:3].tolist() != rows[3:].tolist()
    with pytest.raises(ValueError, match="holds only 3 samples"):
        next(data_order(3, 4, 1, seed=0))


def test_the_schedule_rises_and_falls():
    rates = [schedule(step, 20, 5, 0.9) for step in range(20)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert all(a > b for a, b in pairwise(rates[5:]))
    assert rates[-1] > 0


def test_a_loss_that_is_not_finite_names_task_and_step(split: Split):
    run = fresh(split)
    split.targets["dark"][:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"'dark' is nan at step 1"):
        go(run, RECIPE.steps)


def test_evaluation_covers_an_odd_last_batch(split: Split):
    run = fresh(split)
    figures = evaluate(run.model, split, run.workload.tasks, batch=7)
    whole = run.model.eval()(split.batch(slice(None))["image"])
    assert figures["bright"] == pytest.approx(
        (whole["bright"] - split.targets["bright"]).square().mean().item(), rel=1e-5
    )
