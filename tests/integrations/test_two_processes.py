"""Expanded in the midst of training over two processes: every process ends with the weights of one that saw all samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from crew import Crew
from loops import PLAN, TwoTasks, Words, own_batches, task_losses
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import dtme
from dtme.integrations import Expand

STEPS, AT, SAMPLES = 6, 2, 4


def trained(rank: int, processes: int, gives_wrapper: bool) -> dict[str, Tensor]:
    """SGD: the mean of two halves' gradients is the gradient of all."""
    model = TwoTasks().eval()  # without dropout
    wrapped: Any = DistributedDataParallel(model) if processes > 1 else model
    optimizer = torch.optim.SGD(dtme.parameter_groups(model, lr=2e-5), momentum=0.9)
    expand = Expand(task_losses, own_batches(), at=AT, plan=lambda report: PLAN)
    for step, batch in enumerate(list(DataLoader(Words(), batch_size=SAMPLES))[:STEPS], 1):
        share = {name: rows[rank * SAMPLES // processes :][: SAMPLES // processes] for name, rows in batch.items()}
        wrapped(**share)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        expand.after_step(wrapped if gives_wrapper else model, optimizer, step)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("gives_wrapper", [True, False], ids=["wrapper", "inner module, as callbacks see it"])
def test_two_processes_are_one(gives_wrapper: bool, crew: Callable[[int], Crew]):
    first, second = crew(2).run(trained, 2, gives_wrapper)
    alone = trained(0, 1, gives_wrapper)
    assert any(".dtme." in name for name in alone)
    start = TwoTasks().state_dict()
    assert float((alone["heads.size.weight"] - start["heads.size.weight"]).abs().max()) > 1e-3
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-6)
