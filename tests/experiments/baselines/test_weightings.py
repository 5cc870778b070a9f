"""Every weighting against a step worked out by hand, and against TorchJD's over many."""

import math

import pytest
import torch
from points import Point, matrix
from torch import Tensor, nn

from experiments.baselines import DWA, FAMO, UW, Balancing

TASKS = ("task 0", "task 1")
GRADIENTS = matrix([1.0, 2.0], [3.0, -1.0])


class Given(nn.Module):
    """Losses of given values and of given gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.point = Point(2)

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        losses = self.point(GRADIENTS)
        return {task: loss - loss.detach() + value for (task, loss), value in zip(losses.items(), values, strict=True)}


def step(balancing: Balancing, *values: float) -> tuple[list[float], Tensor]:
    """The weights of a step, and the gradient by the shared point."""
    model = Given()
    weights = balancing(model, model(torch.tensor(values, dtype=torch.float64)))
    gradient = torch.cat([model.point.first.grad, model.point.rest.grad])
    return [weights[task].item() for task in TASKS], gradient


def test_uw_by_hand():
    balancing = UW(TASKS).double()
    with torch.no_grad():
        balancing.log_variance.copy_(torch.tensor([0.0, math.log(4)]))
    weights, gradient = step(balancing, 3.0, 8.0)
    assert weights == pytest.approx([0.5, 0.125])
    torch.testing.assert_close(gradient, 0.5 * GRADIENTS[0] + 0.125 * GRADIENTS[1])
    by_hand = torch.tensor([0.5 - 0.5 * 3.0, 0.5 - 0.5 * 8.0 / 4], dtype=torch.float64)  # 1/2 - 1/2 exp(-s) L
    torch.testing.assert_close(balancing.log_variance.grad, by_hand)


def test_dwa_by_hand():
    balancing = DWA(TASKS, steps_per_epoch=2)
    for values in ((4.0, 1.0), (2.0, 3.0), (1.5, 1.0), (1.5, 1.0)):
        assert step(balancing, *values)[0] == [1.0, 1.0]
    rates = (1.5 / 3.0, 1.0 / 2.0)
    assert step(balancing, 3.0, 1.0)[0] == pytest.approx([1.0, 1.0])
    assert rates[0] == rates[1]
    step(balancing, 3.0, 1.0)
    rates = (3.0 / 1.5, 1.0 / 1.0)  # of the third epoch to the second
    parts = [math.exp(rate / 2.0) for rate in rates]
    weights, gradient = step(balancing, 9.0, 9.0)
    assert weights == pytest.approx([2 * part / sum(parts) for part in parts])
    torch.testing.assert_close(gradient, weights[0] * GRADIENTS[0] + weights[1] * GRADIENTS[1], rtol=1e-6, atol=1e-6)


def test_famo_by_hand():
    balancing = FAMO(TASKS, rate=0.1, decay=0.0).double()
    weights, gradient = step(balancing, 2.0, 8.0)
    c = 1 / (0.5 / 2.0 + 0.5 / 8.0)
    assert weights == pytest.approx([c * 0.5 / 2.0, c * 0.5 / 8.0], rel=1e-6)
    assert sum(weights) == pytest.approx(1)
    torch.testing.assert_close(gradient, weights[0] * GRADIENTS[0] + weights[1] * GRADIENTS[1])
    balancing.after_step(lambda: {"task 0": torch.tensor(1.0), "task 1": torch.tensor(8.0)})
    # fallen = (log 2, 0); dz/dw^T fallen = z * (fallen - z . fallen) = (log 2 / 4, - log 2 / 4); Adam's first step is its sign
    torch.testing.assert_close(balancing.mean, 0.1 * torch.tensor([1, -1], dtype=torch.float64) * math.log(2) / 4)
    assert balancing.logits.tolist() == pytest.approx([-0.1, 0.1], rel=1e-6)
    assert step(balancing, 1.0, 1.0)[0] == pytest.approx(torch.tensor([-0.1, 0.1]).softmax(0).tolist(), rel=1e-5)


def test_famo_refuses_a_negative_loss():
    with pytest.raises(ValueError, match=r"logarithm of losses, and that of task 'task 1' is -0.5"):
        step(FAMO(TASKS).double(), 1.0, -0.5)


@pytest.mark.parametrize("make", [UW, FAMO, lambda tasks: DWA(tasks, 3)], ids=["UW", "FAMO", "DWA"])
def test_the_losses_have_to_be_those_of_the_tasks(make):
    with pytest.raises(ValueError, match=r"the weighting was made for \('task 0', 'other'\)"):
        step(make(("task 0", "other")), 1.0, 1.0)


def test_over_many_steps_they_are_torchjds():
    from torchjd import scalarization

    values = torch.rand(3, 12, 2, dtype=torch.float64) + 0.1
    ours = (UW(TASKS).double(), DWA(TASKS, 3).double(), FAMO(TASKS).double())
    theirs = (scalarization.UW(2).double(), scalarization.DWA(), scalarization.FAMO(2).double())
    made = [torch.optim.Adam(w.parameters(), lr=0.1) for w in (ours[0], theirs[0])]
    for t in range(12):
        for number, (own, their) in enumerate(zip(ours, theirs, strict=True)):
            weights, gradient = step(own, *values[number, t].tolist())
            leaf = values[number, t].clone().requires_grad_()
            their(leaf).backward()
            torch.testing.assert_close(torch.tensor(weights, dtype=torch.float64), leaf.grad, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(gradient, leaf.grad @ GRADIENTS, rtol=1e-6, atol=1e-9)
        for optimiser in made:
            optimiser.step()
            optimiser.zero_grad()
        after = values[2, t].flip(0) + 0.05
        ours[2].after_step(lambda after=after: dict(zip(TASKS, after, strict=True)))
        theirs[2].update(after)
        if t % 3 == 2:
            theirs[1].step()
