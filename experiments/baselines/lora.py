"""One LoRA per task: peft's low-rank updates of the trunk's linear layers, one adapter per task, the model run per task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from dtme.trunk.blocks import find_blocks
from dtme.trunk.linear_layers import linear_layers
from experiments.baselines.pass_per_task import pass_per_task


class LoRAPerTask(nn.Module):
    """Runs the model once per task, with that task's adapter active.

        y = W x + b + B_i A_i x,    B_i = 0 at the start

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. W stays in training, as in the other rows of
    a table; `requires_grad_(False)` freezes it. Blocks in front of the first adapted one run once for all tasks.

    Args:
        model: Given its inputs it returns a dictionary by task, from the heads in a `ModuleDict`. It becomes a child, and
            peft puts its layers into it: keys of `state_dict` change, so load a checkpoint first.
        tasks: Its tasks.
        rank: Rows of A.
        blocks: Which blocks are adapted, as `dtme.trunk.blocks.find_blocks` takes them; all by default.
        layers: A regular expression matched against the whole name of a linear layer in its block; `None` takes all.

    Raises:
        ValueError: No linear layer is meant.

    Example:
        >>> trunk = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
        >>> model = nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleDict({"a": nn.Linear(8, 1), "b": nn.Linear(8, 1)})})
        >>> lora = LoRAPerTask(model, ("a", "b"), rank=2, blocks=[-1], layers="linear1")
        >>> [(name.split("linear1.")[1], tuple(parameter.shape)) for name, parameter in lora.added_parameters()][::2]
        [('lora_A.own_a.weight', (2, 8)), ('lora_B.own_a.weight', (16, 2))]
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[str],
        *,
        rank: int = 4,
        blocks: str | Sequence[str | int] | int | None = None,
        layers: str | None = None,
    ) -> None:
        from peft import LoraConfig, LoraModel

        super().__init__()
        self.tasks = tuple(tasks)
        adapted = [
            f"{block}.{layer}" for block, m in find_blocks(model, blocks).items() for layer in linear_layers(m, layers)
        ]
        if not adapted:
            raise ValueError(f"blocks={blocks!r}, layers={layers!r}: no linear layer of these blocks has such a name.")
        self.adapted = tuple(adapted)
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            lora_dropout=0.0,
            target_modules="|".join(re.escape(layer) for layer in adapted),
            bias="none",
        )
        first, *others = (adapter_of(task) for task in self.tasks)
        tuner = LoraModel(model, dict.fromkeys((first, *others), config), first)  # puts its layers into the model
        for adapter in others:
            tuner.inject_adapter(model, adapter)
        for parameter in model.parameters():  # peft freezes what it does not add
            parameter.requires_grad_(id(parameter) in trained)
        self.model = model
        self._train_adapters()

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Each task's output, of a pass with its adapter."""
        return pass_per_task(self.model, self.tasks, self.adapted, lambda task: self.run(task, *args, **kwargs))

    def run(self, task: str, *args: Any, **kwargs: Any) -> Any:
        """What the model gives in one pass with the adapter of a task; it means something for that task alone."""
        from peft.tuners.lora import LoraLayer

        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.set_adapter(adapter_of(task))
        self._train_adapters()  # peft freezes an adapter when another is active, and its gradients would be lost
        return self.model(*args, **kwargs)

    def added_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of what the model did not have."""
        return ((name, parameter) for name, parameter in self.named_parameters() if ".lora_" in name)

    def _train_adapters(self) -> None:
        for _, parameter in self.added_parameters():
            parameter.requires_grad_(True)


def adapter_of(task: str) -> str:
    """The name of a task's adapter: not the task's, so that peft's dictionaries are never taken for the heads."""
    return f"own_{task}"
