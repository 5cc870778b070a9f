"""Cosines between the tasks' parameter gradients over training (Fig. 4): looked at now and then, training stays plain."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from experiments.baselines import Balancing
from experiments.baselines.jacobian import gramian, is_shared, stacked, task_gradients
from experiments.baselines.recon import cosines_of


class CosineLog(Balancing):
    """The plain sum of the losses; every so many steps the cosines of the tasks' gradients by all they share are noted.

    Args:
        every: Steps from one look to the next.

    Attributes:
        cosines: One row per look, a column per pair of tasks i < j.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> log = CosineLog(every=1)
        >>> output = model(torch.ones(1, 1)).sum()
        >>> _ = log(model, {"a": output, "b": -2 * output})
        >>> log.cosines.tolist(), model.weight.grad.tolist()
        ([[-1.0]], [[-1.0]])
    """

    cosines: Float[Tensor, "looks pairs"]
    step: Tensor

    def __init__(self, every: int = 20) -> None:
        super().__init__()
        self.every = every
        self.cosines = torch.zeros(0, 0)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, model: nn.Module, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add one step's gradients to the parameters' `.grad`, and look at them where it is time to."""
        total = torch.stack(list(losses.values())).sum()
        looks = int(self.step) % self.every == 0
        total.backward(retain_graph=looks)
        if looks:
            shared = [stacked(rows) for rows in task_gradients(model, losses).values() if is_shared(rows)]
            found = cosines_of(gramian(shared))
            first, second = torch.triu_indices(*found.shape, offset=1)
            row = found[first, second].float().unsqueeze(0)
            self.cosines = torch.cat([self.cosines.view(-1, row.shape[1]), row])
        self.step += 1
        return dict.fromkeys(losses, torch.ones(()))

    def get_extra_state(self) -> Tensor:
        """What was noted, for `state_dict`."""
        return self.cosines

    def set_extra_state(self, state: Tensor) -> None:
        """What was noted before an interruption."""
        self.cosines = state
