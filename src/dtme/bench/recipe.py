"""A recipe: every number that a row of a benchmark is trained by. All rows of a table share one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Model, schedule and measurement of one benchmark.

    Attributes:
        size: Height and width of the images, in pixels.
        patch: Pixels a side of a patch; a token each, besides the class token.
        width: Channels p of the tokens.
        depth: Blocks D of the trunk.
        attention_heads: Heads of each block's attention.
        head_width: Channels inside a task's head.
        batch: Images a step.
        images: Scenes rendered to pretrain, to train and to measure on; a suite of real images has as many as it has.
        pretrain_steps: Steps of the shared trunk on the pretraining split, all tasks together.
        steps: Steps of every row.
        expand_at: Step at which conflicts are measured and the plan is applied.
        analysis_batches: Batches of the training split that the analysis reads.
        learning_rate: Peak learning rate of the trunk.
        head_rate: Learning rate of the heads, as a multiple of the trunk's.
        insert_rate: Learning rate of what the plan adds, as a multiple of the trunk's.
        weight_decay: Decoupled; not on norms, biases, class token and what the plan adds.
        warmup: Steps over which the learning rate rises to its peak.
        fraction: Share of the blocks for modulators, and for task tokens.
    """

    size: int = 64
    patch: int = 8
    width: int = 64
    depth: int = 6
    attention_heads: int = 4
    head_width: int = 32
    batch: int = 16
    images: tuple[int, int, int] = (2000, 1000, 400)
    pretrain_steps: int = 800
    steps: int = 600
    expand_at: int = 60
    analysis_batches: int = 8
    learning_rate: float = 1e-3
    head_rate: float = 3.0
    insert_rate: float = 10.0
    weight_decay: float = 0.02
    warmup: int = 50
    fraction: float = 0.5

    def __post_init__(self) -> None:
        if self.size % self.patch:
            raise ValueError(f"size={self.size}: patches of {self.patch} pixels do not tile it. Give a multiple.")
        if not 0 <= self.expand_at < self.steps:
            raise ValueError(f"expand_at={self.expand_at}: give a step before the last of {self.steps}.")


PRETRAINING = -1
"""The seed of the pretraining's data order and first weights: no row shares it."""
