"""What every model of the study is: a trunk that all tasks share, and heads."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from experiments.dense.suite import Task


class MultiTaskModel(nn.Module):
    """One trunk, and what each task makes of its tokens.

    Attributes:
        trunk: What all tasks share, a module with blocks.
        heads: Where each task leaves it.
        blocks: Which modules are the trunk's blocks, as `dtme.find_blocks` takes it; `None` where it finds them.
    """

    blocks: ClassVar[str | None] = None
    trunk: Any
    heads: nn.ModuleDict

    def add_task(self, task: Task) -> None:
        """Give a task its head, drawn at random."""
        raise NotImplementedError
