"""Every model of the zoo over two processes, replicated and sharded: it trains, and is analysed, as in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from crew import Crew
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import dtme
from dtme.report.report import ConflictReport
from zoo import ZOO, Inputs, Outputs, assert_same, everything, filled, gradients_of

Answer = tuple[Tensor, Outputs, ConflictReport]
SAMPLES = 4


def half(inputs: Inputs, rank: int) -> Inputs:
    return {key: value[rank * SAMPLES // 2 : (rank + 1) * SAMPLES // 2] for key, value in inputs.items()}


def losses(model: nn.Module, inputs: Inputs) -> Outputs:
    """Each sample weighs the same, whatever its padding, so that a loss is the mean of those of two halves."""
    outputs = model(**inputs)
    return {task: (output - 0.1 * place).square().mean() for place, (task, output) in enumerate(outputs.items())}


def trained_and_analysed(model: nn.Module, inputs: Inputs, batches: list[Inputs]) -> Answer:
    loss = torch.stack(list(losses(model, inputs).values())).sum()
    loss.backward()
    gradients = {name: getattr(g, "full_tensor", lambda g=g: g)() for name, g in gradients_of(model).items()}
    model.zero_grad()
    return loss.detach(), gradients, dtme.analyze(model, losses, batches)


def replicated(model: nn.Module, blocks: list[str], all_used: bool) -> nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=not all_used)


def sharded(model: nn.Module, blocks: list[str], all_used: bool) -> Any:
    mesh = init_device_mesh("cpu", (2,))
    for block in blocks:
        fully_shard(model.get_submodule(block), mesh=mesh)
    return fully_shard(model, mesh=mesh)


def in_a_process(rank: int, name: str, distribute: Callable[..., nn.Module], all_used: bool) -> Answer:
    entry = ZOO[name]
    model = distribute(filled(entry.make(), everything(entry)), entry.blocks, all_used)
    mine = half(entry.inputs(SAMPLES), rank)
    return trained_and_analysed(model, mine, [mine, half(mine, 0)] if rank == 0 else [mine])


@pytest.mark.parametrize(
    ("name", "distribute"),
    [
        pytest.param(name, distribute, marks=pytest.mark.cell(column), id=f"{name}-{column}")
        for name in ZOO
        for distribute, column in ((replicated, "DDP"), (sharded, "FSDP2"))
    ],
)
def test_two_processes_are_one(name: str, distribute: Callable[..., nn.Module], crew: Callable[[int], Crew]):
    entry = ZOO[name]
    model, inputs = filled(entry.make(), everything(entry)), entry.inputs(SAMPLES)
    first, second = half(inputs, 0), half(inputs, 1)
    loss, gradients, report = trained_and_analysed(model, inputs, [first, second, half(first, 0)])
    assert {key for key, _ in dtme.added_parameters(model)} <= gradients.keys()
    all_used = len(gradients) == len(list(model.parameters()))
    answers = crew(2).run(in_a_process, name, distribute, all_used)
    torch.testing.assert_close(torch.stack([own for own, _, _ in answers]).mean(), loss, rtol=1e-9, atol=1e-9)
    for _, own, theirs in answers:
        assert_same({key.removeprefix("module."): gradient for key, gradient in own.items()}, gradients)
        assert (theirs.tasks, theirs.blocks, theirs.samples) == (report.tasks, report.blocks, report.samples)
        for kind in ("range_rate", "null_rate", "range_halfwidth", "null_halfwidth"):
            torch.testing.assert_close(getattr(theirs, kind), getattr(report, kind), rtol=0, atol=1e-9)
