"""A recipe: every number that a row of a benchmark is trained by. All rows of a table share one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch


@dataclass(frozen=True)
class Recipe:
    """Model, schedule and measurement of one benchmark.

    Attributes:
        size: Height and width of the images, in pixels; one number for both, or each.
        patch: Pixels a side of a patch; a token each, besides the class token.
        width: Channels p of the tokens.
        depth: Blocks D of the trunk.
        attention_heads: Heads of each block's attention.
        mlp_width: Channels inside a block's MLP, in multiples of p.
        head_width: Channels inside a task's head.
        batch: Images a step.
        images: Scenes rendered to pretrain, to train and to measure on; a suite of real images has as many as it has.
        start: Where rows begin. `"weights"`: with a trunk whose weights come from elsewhere. `"trunk"`: from one trunk trained on
            the pretraining split, heads anew, for the training split is new to it. `"plateau"`: from a whole model trained to
            its end on both splits, one per seed; rows go on there with all of these images, so that what they gain is not
            merely more training.
        pretrain_steps: Steps of what rows begin from, all tasks together.
        steps: Steps of every row.
        expand_at: Step at which conflicts are measured and the plan is applied.
        analysis_batches: Batches of the training split that the analysis reads.
        learning_rate: Peak learning rate of the trunk.
        row_rate: Peak learning rate of rows, as a multiple of that of what they begin with; a small one is the paper's regime,
            a well-trained trunk that moves little.
        head_rate: Learning rate of the heads, as a multiple of the trunk's.
        first_head_rate: The same, in the training that rows begin with.
        insert_rate: Learning rate of modulators and task tokens, as a multiple of the trunk's.
        low_rank_rate: Learning rate of low-rank updates and of a plan's copies, as a multiple of the trunk's.
        insert_decay: Weight decay of what the plan adds.
        insert_warmup: Steps after insertion over which its learning rate rises, besides the warm-up of all.
        frozen_trunk: Train heads and inserts alone (Tab. 12).
        weight_decay: Decoupled; not on norms, biases, class token and what the plan adds.
        warmup: Steps over which the learning rate rises to its peak.
        fraction: Share of the blocks for modulators, and for task tokens.
    """

    size: int | tuple[int, int] = 64
    patch: int = 8
    width: int = 64
    depth: int = 6
    attention_heads: int = 4
    mlp_width: float = 4.0
    head_width: int = 32
    batch: int = 16
    images: tuple[int, int, int] = (2000, 1000, 400)
    start: Literal["trunk", "plateau", "weights"] = "trunk"
    pretrain_steps: int = 800
    steps: int = 600
    expand_at: int = 60
    analysis_batches: int = 8
    learning_rate: float = 1e-3
    row_rate: float = 1.0
    head_rate: float = 3.0
    first_head_rate: float = 3.0
    insert_rate: float = 10.0
    low_rank_rate: float = 3.0
    insert_decay: float = 0.0
    insert_warmup: int = 0
    frozen_trunk: bool = False
    weight_decay: float = 0.02
    warmup: int = 50
    fraction: float = 0.5

    def __post_init__(self) -> None:
        if any(side % self.patch for side in self.height_width):
            raise ValueError(f"size={self.size}: patches of {self.patch} pixels do not tile it. Give a multiple.")
        if self.width < 1 or self.width % self.attention_heads:
            raise ValueError(f"width={self.width}: {self.attention_heads} heads do not divide it. Give a multiple.")
        if not 0 <= self.expand_at < self.steps:
            raise ValueError(f"expand_at={self.expand_at}: give a step before the last of {self.steps}.")

    @property
    def height_width(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def optimizer_class(self) -> type[torch.optim.Adam]:
        """AdamW, whose decay is apart from the gradient."""
        return torch.optim.AdamW

    @property
    def parts_of_a_batch(self) -> int:
        """A batch is gone through at once."""
        return 1

    @property
    def compiles(self) -> bool:
        """Training takes the model as it is."""
        return False

    @property
    def settles_statistics(self) -> bool:
        """Batch norms are measured anew on the training split, once training has ended."""
        return True

    @property
    def measured_at(self) -> tuple[int, ...]:
        """Steps after which losses and metrics are measured on both splits: none."""
        return ()


PRETRAINING = -1
"""The seed of the pretraining's data order and first weights: no row shares it."""

TRANSFER = Recipe()
"""A trunk that knows the tasks meets new images, far from converged."""

FEW = replace(TRANSFER, images=(2000, 100, 400), steps=500, expand_at=0)
"""The same trunk meets few images for many epochs, as the paper's does: the regime of the demo."""

PLATEAU = Recipe(
    size=32,
    patch=4,
    width=24,
    depth=6,
    attention_heads=2,
    head_width=16,
    start="plateau",
    pretrain_steps=12000,
    steps=1000,
    expand_at=0,
    analysis_batches=16,
    learning_rate=3e-3,
    head_rate=1.0,
    first_head_rate=1.0,
    warmup=100,
)
"""A small trunk at its end: more steps gain plain training next to nothing, so that what tasks take from each other shows."""

SETTLED = replace(PLATEAU, row_rate=0.1, head_rate=1.0, insert_rate=100.0, low_rank_rate=30.0)
"""The paper's way: from the same plateau on, the trunk moves little, and what is inserted moves as much as there."""
