"""Mixed precision after `apply`: autocast forward and backward, scaled losses, and whole models in low precision."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import dtme
from zoo import ZOO, Outputs, as_type, assert_same, everything, filled, gradients_of, inert, loss_of

_COPY = re.compile(r"dtme\.copies\.\d+\.")
HALF = (torch.bfloat16, torch.float16)


def as_floats(outputs: Outputs) -> Outputs:
    return {task: output.float() for task, output in outputs.items()}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ZOO)
def test_autocast_with_a_scaled_loss_gives_the_same_step(name: str, dtype: torch.dtype):
    entry = ZOO[name]
    model, inputs = filled(entry.make(torch.float32), everything(entry)), as_type(entry.inputs(), torch.float32)
    full = model(**inputs)
    loss_of(full).backward()
    gradients = gradients_of(model)
    model.zero_grad()
    error = 16 * torch.finfo(dtype).eps  # of numbers around one, through three blocks
    with torch.autocast("cpu", dtype):
        mixed = model(**inputs)
        loss = loss_of(mixed)
    assert_same(as_floats(mixed), full, rtol=error, atol=error)

    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaler.scale(loss).backward()
    scaler.unscale_(optimiser)
    unread = inert(gradients)
    added = {name: own for name, own in dtme.added_parameters(model) if name not in unread}
    for name, parameter in added.items():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        # The losses of one task may nearly cancel, and so may what its copy of a block learns: held against all tasks'.
        scale = max(gradients[own].norm() for own in {name, _COPY.sub("", name)})
        assert float((parameter.grad - gradients[name]).norm()) <= 5 * error * scale + 1e-7, name
    before = {name: parameter.detach().clone() for name, parameter in added.items()}
    scaler.step(optimiser)
    scaler.update()
    assert not any(torch.equal(parameter, before[name]) for name, parameter in added.items())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ZOO)
def test_a_model_in_low_precision(name: str, dtype: torch.dtype):
    entry = ZOO[name]
    model: nn.Module = filled(entry.make(dtype), everything(entry))
    for own, parameter in dtme.added_parameters(model):  # a copy does what its block does, in the block's numbers
        assert parameter.dtype == (dtype if _COPY.search(own) else torch.float32)
    outputs = model(**as_type(entry.inputs(), dtype))
    assert {output.dtype for output in outputs.values()} == {dtype}
    expected = filled(entry.make(), everything(entry))(**entry.inputs())
    error = 16 * torch.finfo(dtype).eps
    assert_same(as_floats(outputs), as_floats(expected), rtol=error, atol=error)
