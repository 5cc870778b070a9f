"""The optimizer of a run: groups for the trunk, the heads and what methods add, each with a rate of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dtme.attach.apply import added_parameters, is_applied


def make_optimizer(
    model: nn.Module,
    recipe: Any,
    decays: Callable[[Tensor], bool],
    kind: type[torch.optim.Adam] = torch.optim.AdamW,
) -> torch.optim.Adam:
    """An optimizer with groups for trunk and heads; what a method adds comes with `add_group`.

    Args:
        model: Its `heads` are told from its trunk by their name; what a plan has added is left out.
        recipe: Its `learning_rate`, `head_rate` and `weight_decay` are used.
        decays: Which parameters decay.
        kind: AdamW, whose decay is apart from the gradient, or Adam, whose decay is in it.
    """
    inserted = {name for name, _ in added_parameters(model)} if is_applied(model) else set()
    groups = []
    for heads, rate in ((False, 1.0), (True, recipe.head_rate)):
        named = [(name, p) for name, p in model.named_parameters() if name not in inserted]
        own = [parameter for name, parameter in named if name.startswith("heads.") == heads]
        for decay in (True, False):
            chosen = [parameter for parameter in own if decays(parameter) == decay]
            groups.append({"params": chosen, "rate": rate, "weight_decay": recipe.weight_decay if decay else 0.0})
    return kind(groups, lr=recipe.learning_rate, fused=True)


def add_group(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    rate: float,
    decay: float = 0.0,
    **options: Any,
) -> None:
    """Give new parameters a group of their own, by default without decay, which would pull scales to 0 instead of to 1."""
    own = list(parameters)
    if own:
        optimizer.add_param_group({"params": own, "rate": rate, "weight_decay": decay, **options})
