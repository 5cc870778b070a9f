"""Several processes that train one model: gradients are means, buffers the first one's, and files are written once."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from experiments.runner.processes import average_gradients, by_first, place, share_buffers


def averaged(rank: int) -> tuple[list[float], list[float], float]:
    model = nn.ModuleDict({"shared": nn.Linear(2, 1, bias=False), "own": nn.Linear(1, 1, bias=False)})
    norm = nn.BatchNorm1d(1)
    model["norm"] = norm
    norm.running_mean = torch.tensor([float(rank)])
    model["shared"].weight.grad = torch.tensor([[1.0 + rank, 10.0 * rank]])
    if rank == 1:  # a task that the other process has no image of
        model["own"].weight.grad = torch.tensor([[4.0]])
    average_gradients(model)
    share_buffers(model)
    grads = [model[name].weight.grad.flatten().tolist() for name in ("shared", "own")]
    return grads[0], grads[1], float(norm.running_mean)


def written(rank: int, folder: str) -> tuple[tuple[int, int], bool]:
    path = Path(folder) / f"by-{rank}"
    by_first(path.touch)
    return place(), (Path(folder) / "by-0").exists()


def test_gradients_are_the_means_of_all_processes(crew):
    assert crew(2).run(averaged) == [([1.5, 5.0], [2.0], 0.0)] * 2


def test_the_first_process_writes_and_the_others_wait(crew, tmp_path):
    assert crew(2).run(written, str(tmp_path)) == [((0, 2), True), ((1, 2), True)]
    assert [path.name for path in tmp_path.iterdir()] == ["by-0"]


def test_one_process_is_left_alone(tmp_path):
    model = nn.Linear(1, 1)
    average_gradients(model)
    assert model.weight.grad is None
    by_first((tmp_path / "made").touch)
    assert (tmp_path / "made").exists()
