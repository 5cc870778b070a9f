"""What the propositions promise (METHOD section 8), and the sums of token gradients that they rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import reference
import torch
from models import TinyViT, make_batches, task_losses, tiny_vit
from torch import Tensor

import dtme

TASKS = ("depth", "semseg", "scene")
PLANS: dict[str, dict[str, Any]] = {
    "modulators": {"modulate": {"blocks.1": TASKS, "blocks.3": TASKS}},
    "task tokens": {"expand": {"blocks.1": TASKS, "blocks.3": TASKS}},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small wait for a second thread far longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def changed_model(inserts: dict[str, Any]) -> tuple[TinyViT, dict[str, Tensor]]:
    """A model with a plan applied, and the parameters that were added."""
    model = tiny_vit(TASKS).double()
    dtme.apply(model, dtme.Plan(tasks=TASKS, **inserts))
    return model, dict(dtme.added_parameters(model))


@pytest.mark.parametrize("name", PLANS)
def test_a_step_on_what_was_added_lowers_the_loss_to_first_order(name: str):
    """By eta * sum_i |dL_i/dM_i|^2; what is missing is eta^2 g'Hg / 2 and no more, H the Hessian of the summed loss."""
    model, added = changed_model(PLANS[name])
    (batch,) = make_batches(model, (4,))
    parameters = list(added.values())
    losses = task_losses(model, batch)
    gradients = {task: torch.autograd.grad(losses[task], parameters, create_graph=True) for task in TASKS}
    before = torch.stack([*losses.values()]).sum()
    step = [torch.stack(parts).sum(0) for parts in zip(*gradients.values(), strict=True)]
    promised = sum_of_squares(gradient for task in TASKS for gradient in gradients[task])
    curvature = torch.autograd.grad(sum_of_squares(step) / 2, parameters)  # H g
    second_order = sum((g * h).sum().item() for g, h in zip(step, curvature, strict=True)) / 2
    start = [parameter.detach().clone() for parameter in parameters]

    def decrease(eta: float) -> float:
        with torch.no_grad():
            for parameter, value, gradient in zip(parameters, start, step, strict=True):
                parameter.copy_(value - eta * gradient)
            return (before - torch.stack([*task_losses(model, batch).values()]).sum()).item()

    for eta in (1e-3, 1e-4, 1e-5):
        missing = decrease(eta) / (eta * promised.item()) - 1
        assert abs(missing) < 10 * eta
        assert missing / eta == pytest.approx(-second_order / promised.item(), abs=300 * eta)


def sum_of_squares(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()


@pytest.mark.parametrize("name", PLANS)
def test_a_loss_depends_on_its_own_part_alone(name: str):
    model, added = changed_model(PLANS[name])
    (batch,) = make_batches(model, (2,))
    losses = task_losses(model, batch)
    for i, task in enumerate(TASKS):
        gradients = torch.autograd.grad(losses[task], list(added.values()), retain_graph=True)
        for key, gradient in zip(added, gradients, strict=True):
            others = [j for j in range(len(TASKS)) if j != i]
            assert gradient[i].any(), key
            assert not gradient[others].any(), key


@pytest.mark.parametrize(
    ("parameter", "times"), [("shift", lambda tokens: torch.ones_like(tokens)), ("scale", lambda tokens: tokens)]
)
def test_a_modulator_receives_the_sum_of_token_gradients(parameter: str, times: Callable[[Tensor], Tensor]):
    """dL_i/db_i is the sum of dL_i/dT over samples and tokens; dL_i/dW_i is the sum of dL_i/dT * T."""
    plain = tiny_vit(TASKS).double()
    model, added = changed_model({"modulate": {"blocks.2": TASKS}})
    (batch,) = make_batches(plain, (3,))
    for i, task in enumerate(TASKS):
        tokens, gradient = reference.token_gradients(plain, "blocks.2", task_losses, batch, task)
        (received,) = torch.autograd.grad(task_losses(model, batch)[task], added[f"blocks.2.dtme.{parameter}"])
        torch.testing.assert_close(received[i], (gradient * times(tokens)).sum((0, 1)), rtol=0, atol=1e-13)
