"""What is raised where training has diverged, so that whoever tries settings can tell it from all other errors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class DivergedError(FloatingPointError, ValueError):
    """A loss or a prediction is not finite; the message says whose, and what to lower."""


def check_finite(losses: Mapping[str, Tensor], where: str) -> None:
    """Every loss has to be finite.

    Args:
        losses: By task.
        where: For the message.

    Raises:
        DivergedError: One is not; names its task.

    Example:
        >>> import torch
        >>> check_finite({"RTE": torch.tensor(0.7), "CoLA": torch.tensor(float("inf"))}, "at step 3")
        Traceback (most recent call last):
        experiments.training.divergence.DivergedError: the loss of task 'CoLA' is inf at step 3: lower the learning rate.
    """
    for task, loss in losses.items():
        if not bool(loss.isfinite()):
            raise DivergedError(
                f"the loss of task {task!r} is {loss.detach().item()} {where}: lower the learning rate."
            )
