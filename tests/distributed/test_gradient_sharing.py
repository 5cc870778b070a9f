"""Inserts that join a model in DistributedDataParallel in the midst of training stay the same in all processes."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from crew import Crew
from models import timm_multitask
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import dtme

Crews = Callable[[int], Crew]
TASKS = ("depth", "semseg", "scene")
BLOCK = "trunk.blocks.{}".format
PLAN = dtme.Plan(TASKS, {BLOCK(2): TASKS}, {BLOCK(3): ("semseg",)}, {BLOCK(3): ("depth", "scene")}, rank=2)
OTHER = dtme.Plan(TASKS, {BLOCK(2): TASKS, BLOCK(3): ("scene",)})


def loss_of(outputs: dict[str, Tensor], tasks: tuple[str, ...]) -> Tensor:
    return torch.stack([outputs[task].square().mean() for task in tasks]).sum()


def trained(rank: int, how: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters after six steps, of which the third expands; each process has half of every batch."""
    alone = how.startswith("one process")
    model: Any = timm_multitask(TASKS).double()
    images = torch.randn(6, 2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = slice(None) if alone else slice(2 * rank, 2 * rank + 2)
    parallel: Any = model if alone else DistributedDataParallel(model, find_unused_parameters="other tasks" in how)
    optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3))
    for step, (first, second) in enumerate(images):
        if step == 2 or (step == 4 and "another plan" in how):
            torch.manual_seed(0 if alone else rank)  # each process has random numbers of its own
            dtme.expand(model if "inner" in how else parallel, optimizer, PLAN if step == 2 else OTHER)
        if "accumulated" in how:
            with contextlib.nullcontext() if alone else parallel.no_sync():
                loss_of(parallel(first[rows]), TASKS).backward()
        if "other tasks" in how and alone:
            (
                loss_of(model(second[:2]), ("depth",)) / 2 + loss_of(model(second[2:]), ("semseg", "scene")) / 2
            ).backward()
        elif "other tasks" in how:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "dtme.apply: some of what was inserted got no gradient")
                loss_of(parallel(second[rows]), ("depth",) if rank == 0 else ("semseg", "scene")).backward()
        else:
            loss_of(parallel(second[rows]), TASKS).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters()}, gradients


@pytest.mark.filterwarnings("ignore:dtme.apply:UserWarning")
@pytest.mark.parametrize("how", ["wrapped", "inner", "accumulated", "other tasks", "another plan"])
def test_processes_train_the_same_inserts_as_one_with_all_rows(crew: Crews, how: str):
    one, other = crew(2).run(trained, how)
    alone = trained(0, f"one process, {how}")
    for theirs, expected in ((other, one), (one, alone)):
        for found, wanted in zip(theirs, expected, strict=True):
            assert found.keys() == wanted.keys()
            for name, tensor in found.items():
                if theirs is other:
                    assert torch.equal(tensor, wanted[name]), name
                else:
                    torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-9, msg=name)
    assert any(".dtme." in name for name in one[1])


def gradients_left_alone(rank: int) -> list[bool]:
    """What no process reached stays without a gradient; what one reached is shared."""
    model: Any = timm_multitask(TASKS).double()
    optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3))
    alone = ("depth",) if rank == 0 else ("semseg",)
    plan = dtme.Plan(TASKS, {BLOCK(1): ("depth",), BLOCK(2): ("semseg",), BLOCK(3): ("scene",)})
    dtme.expand(model, optimizer, plan)
    with dtme.tasks(model, *alone):
        loss_of(model(torch.ones(1, 3, 32, 32, dtype=torch.float64)), alone).backward()
    return [parameter.grad is not None for _, parameter in dtme.added_parameters(model)]


def test_processes_that_reach_different_inserts_do_not_mix_them_up(crew: Crews):
    assert crew(2).run(gradients_left_alone) == [[True, True, True, True, False, False]] * 2


def alone(rank: int) -> Tensor:
    model: Any = timm_multitask(TASKS).double()
    optimizer = torch.optim.SGD(dtme.parameter_groups(model, lr=1e-3))
    torch.manual_seed(rank)
    dtme.expand(model, optimizer, PLAN, process_group="alone")
    loss_of(model(torch.full((1, 3, 32, 32), rank + 1.0, dtype=torch.float64)), TASKS).backward()
    return dict(dtme.added_parameters(model))[f"{BLOCK(2)}.dtme.shift"].grad


def test_models_of_ones_own_are_left_alone(crew: Crews):
    one, other = crew(2).run(alone)
    assert not torch.allclose(one, other)


def copied(rank: int) -> bool:
    """A copy is no replica: its gradients are its own, and processes need not copy together."""
    model: Any = timm_multitask(TASKS).double()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(dtme.parameter_groups(model, lr=1e-3))
    dtme.expand(parallel, optimizer, PLAN)
    if rank == 0:
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
            loss_of(twin(torch.ones(1, 3, 32, 32, dtype=torch.float64)), TASKS).backward()
            dtme.remove(twin)
    dtme.remove(model)
    return all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_copies_of_the_model_share_nothing(crew: Crews):
    assert crew(2).run(copied) == [True, True]


def sharded(rank: int) -> list[str]:
    model: Any = timm_multitask(TASKS)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in model.trunk.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3))
    said = []
    for applied in (False, True):
        if applied:
            model = dtme.apply(timm_multitask(TASKS), PLAN)
            fully_shard(model, mesh=mesh)
            optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3))
        try:
            dtme.expand(model, optimizer, OTHER)
        except ValueError as error:
            said.append(str(error))
        assert dtme.plan_of(model) == (PLAN if applied else None)
    return said


def test_sharded_models_are_told_to_plan_first(crew: Crews):
    for said in crew(2).run(sharded):
        assert len(said) == 2
        assert all("sharded (FSDP) already" in text and "Apply the plan first" in text for text in said)
