"""A plan travels with a state dict that carries it; where it does not travel, its absence is explained."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from crew import Crew
from models import timm_multitask
from safetensors.torch import load, save
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import dtme

Crews = Callable[[int], Crew]
TASKS = ("depth", "semseg", "scene")
BLOCK = "trunk.blocks.{}".format
PLAN = dtme.Plan(TASKS, {BLOCK(2): TASKS}, {BLOCK(3): ("semseg",)}, {BLOCK(3): ("depth", "scene")}, rank=2)
OTHER = dtme.Plan(TASKS, {BLOCK(1): TASKS, BLOCK(2): TASKS})
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def carrying(plan: dtme.Plan | None = None, seed: int = 0) -> Any:
    model: Any = dtme.carry_plan(timm_multitask(TASKS, seed=seed))
    if plan is not None:
        dtme.apply(model, plan)
        with torch.no_grad():
            for _, parameter in dtme.added_parameters(model):
                parameter.normal_(std=0.1)
    return model


def assert_same(one: nn.Module, other: nn.Module) -> None:
    assert dtme.plan_of(one) == dtme.plan_of(other)
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())
    outputs = other(IMAGES)
    assert all(torch.equal(output, outputs[task]) for task, output in one(IMAGES).items())


def through_torch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


WAYS: dict[str, Callable[[Any], dict[str, Tensor]]] = {
    "memory": lambda state: state,
    "a plain dictionary": dict,
    "torch.save": through_torch,
    "safetensors": lambda state: load(save(dict(state))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", [None, PLAN, OTHER], ids=["plain", "same plan", "another plan"])
def test_a_model_takes_the_plan_of_what_it_loads(way: str, before: dtme.Plan | None):
    model, fresh = carrying(PLAN), carrying(before, seed=5)
    state = torch.get_rng_state()
    fresh.load_state_dict(WAYS[way](model.state_dict()))
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(fresh, model)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("strict", [True, False])
def test_what_was_saved_before_the_plan_takes_it_out(way: str, strict: bool):
    plain, late = carrying(seed=5), carrying(PLAN)
    late.load_state_dict(WAYS[way](plain.state_dict()), strict=strict)
    assert_same(late, plain)


def test_the_optimizer_follows():
    model = carrying()
    optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3))
    dtme.carry_plan(model, optimizer=optimizer)
    before = copy.deepcopy(model.state_dict())
    dtme.expand(model, optimizer, PLAN)
    torch.stack([output.mean() for output in model(IMAGES).values()]).sum().backward()
    optimizer.step()
    after = copy.deepcopy(model.state_dict())
    model.load_state_dict(before)
    assert optimizer.param_groups[-1]["params"] == []
    assert set(optimizer.state) == set(model.parameters())
    model.load_state_dict(after)
    assert optimizer.param_groups[-1]["params"] == [parameter for _, parameter in dtme.added_parameters(model)]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_copies_carry_theirs(duplicate: Callable[[Any], Any]):
    model = carrying()
    optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3))
    twin = duplicate(dtme.carry_plan(model, optimizer=optimizer))
    twin.load_state_dict(carrying(PLAN).state_dict())
    assert dtme.plan_of(twin) == PLAN
    assert dtme.plan_of(model) is None
    assert optimizer.param_groups[-1]["params"] == []


class Around(nn.Module):
    """As a LightningModule lies around a model."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.model: Any = timm_multitask(TASKS, seed=seed)
        dtme.carry_plan(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.model(images)


def test_the_plan_of_a_module_inside_is_put_in_there():
    one, other = Around(), Around(seed=5)
    dtme.apply(one.model, PLAN)
    other.load_state_dict(one.state_dict())
    assert_same(other, one)
    other.model.load_state_dict(one.model.state_dict())
    inside = nn.Sequential(carrying(seed=5))
    inside.load_state_dict(nn.Sequential(carrying(PLAN)).state_dict())
    assert dtme.plan_of(inside) == PLAN


def test_branches_travel_along():
    def fresh() -> Any:
        model: Any = timm_multitask(TASKS)
        model.outs = nn.ModuleDict({task.upper(): model.heads[task] for task in TASKS})
        del model.heads
        model.forward = lambda x: {task: model.outs[task.upper()](model.trunk.forward_features(x)) for task in TASKS}
        return dtme.carry_plan(model)

    model = fresh()
    dtme.apply(model, PLAN, branches={task: f"outs.{task.upper()}" for task in TASKS})
    again = fresh()
    again.load_state_dict(model.state_dict())
    assert_same(again, model)


def test_a_plain_model_is_told_by_the_key_itself():
    with pytest.raises(RuntimeError, match=r"dtme_plan: call dtme\.carry_plan\(model\) before loading"):
        timm_multitask(TASKS).load_state_dict(carrying(PLAN).state_dict())


def test_without_the_key_nothing_is_different():
    plain = timm_multitask(TASKS, seed=5)
    model = carrying()
    model.load_state_dict(plain.state_dict())
    assert dtme.plan_of(model) is None
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in plain.state_dict().items())


def test_inserts_that_the_state_dict_lacks_are_told():
    late, early = dtme.apply(timm_multitask(TASKS), PLAN), timm_multitask(TASKS, seed=5)
    with pytest.raises(RuntimeError, match=r"inserts that the state dict does not hold") as caught:
        late.load_state_dict(early.state_dict())
    assert str(caught.value).count("call dtme.remove(model), load it") == 1
    assert "Missing key(s)" in str(caught.value)
    missing = late.load_state_dict(early.state_dict(), strict=False).missing_keys  # as asked
    assert sorted(missing) == sorted(name for name, _ in dtme.added_parameters(late))


def test_inserts_of_another_plan_are_told():
    one, other = dtme.apply(timm_multitask(TASKS), PLAN), dtme.apply(timm_multitask(TASKS), OTHER)
    with pytest.warns(UserWarning, match=r"inserts that this model has no place for .*dtme\.resume\(model, folder\)"):
        one.load_state_dict(other.state_dict(), strict=False)


def test_after_remove_nothing_is_said_and_nothing_is_left():
    model = dtme.remove(dtme.apply(timm_multitask(TASKS), PLAN))
    assert not model._load_state_dict_post_hooks
    model.load_state_dict(timm_multitask(TASKS).state_dict())


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (b"not JSON", "the plan in the state dict .* is not readable JSON"),
        (b'{"format": "dtme.plan", "version": 1}', "expected the format 'dtme.applied'"),
        (b'{"format": "dtme.applied", "version": 1, "plan": {"tasks": ["a"], "what": 1}}', "unknown fields"),
        (b'{"format": "dtme.applied", "version": 1, "plan": null, "at": "inner"}', "for a module 'inner'"),
    ],
)
def test_a_plan_that_is_damaged_is_told(told: bytes, says: str):
    state = carrying(PLAN).state_dict()
    key = next(name for name in state if name.startswith("dtme_plan"))
    state[key] = torch.tensor(list(told), dtype=torch.uint8)
    with pytest.raises(ValueError, match=says):
        carrying().load_state_dict(state)


def replicated(rank: int) -> bool:
    parallel = DistributedDataParallel(carrying(PLAN))
    fresh = DistributedDataParallel(carrying(seed=5))
    state = parallel.state_dict()
    fresh.module.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return dtme.plan_of(fresh) == PLAN


def sharded(rank: int) -> list[str]:
    """State dicts that torch.distributed.checkpoint puts together."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    model, fresh = carrying(PLAN), carrying(PLAN, seed=5)
    for one in (model, fresh):
        fully_shard(one, mesh=mesh)
    state = get_model_state_dict(model)
    set_model_state_dict(fresh, state)
    ours, theirs = dict(model.named_parameters()), dict(fresh.named_parameters())
    same = all(torch.equal(ours[name].full_tensor(), theirs[name].full_tensor()) for name in ours)
    return [str(same), *(name for name in state if "dtme_plan" in name)]


def test_replicated_and_sharded_models_load_and_save(crew: Crews):
    assert crew(2).run(replicated) == [True, True]
    assert crew(2).run(sharded) == [["True"], ["True"]]
