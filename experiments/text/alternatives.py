"""Models that take the model's place in a row of the table: one LoRA per task, norms and biases per task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Int
from experiments.baselines.lora import LoRAPerTask
from experiments.baselines.norms_and_biases import OwnNormsAndBiases
from experiments.text.data.tasks import TextTask
from experiments.text.recipe import TextRecipe

LORA_RANK = 8
LORA_LAYERS = r".*\.(query|value|q_proj|v_proj|q_lin|v_lin)"
"""LoRA as it is commonly set: rank 8 on the maps to queries and values of every block."""


class LoRAByRow(nn.Module):
    """One LoRA per task, where each row of a batch has a task of its own: the rows of each task run with its adapter.

    Adapters are switched for a whole pass, so that a mixed batch costs a pass per task in it.

    Args:
        model: Of text tasks.
        tasks: Its tasks.
        rank: Of each adapter.
        layers: Which linear layers are adapted, a regular expression matched against the whole name in a block.
    """

    def __init__(
        self, model: nn.Module, tasks: Sequence[str], *, rank: int = LORA_RANK, layers: str = LORA_LAYERS
    ) -> None:
        super().__init__()
        self.lora = LoRAPerTask(model, tasks, rank=rank, layers=layers)
        self._rows: Int[Tensor, " rows"] | None = None

    @contextmanager
    def per_sample(self, rows: Int[Tensor, " rows"]) -> Iterator[None]:
        """While it lasts, each row of the batch runs with the adapter of its own task, an index into the tasks."""
        before, self._rows = self._rows, rows
        try:
            yield
        finally:
            self._rows = before

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Each task's output; without `per_sample` for all rows, within it for the rows of the task, and zero elsewhere."""
        if self._rows is None:
            return self.lora(**inputs)
        outputs = {}
        for place, task in enumerate(self.lora.tasks):
            own = (self._rows == place).nonzero().flatten()
            if len(own):
                found = self.lora.run(task, **{name: tensor[own] for name, tensor in inputs.items()})[task]
                whole = found.new_zeros(len(self._rows), *found.shape[1:])
                outputs[task] = torch.index_copy(whole, 0, own, found)
        return outputs

    def added_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of what the model did not have."""
        return self.lora.added_parameters()


def lora(model: nn.Module, tasks: Sequence[TextTask], recipe: TextRecipe) -> Any:
    """One LoRA per task, on queries and values of all blocks."""
    return LoRAByRow(model, [task.name for task in tasks])


def norms_and_biases(model: nn.Module, tasks: Sequence[TextTask], recipe: TextRecipe) -> Any:
    """LayerNorms and biases of each task's own, in all blocks."""
    return OwnNormsAndBiases(model, [task.name for task in tasks])
