"""A recipe: every number that the rows of a table of text tasks are trained by. All rows share one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experiments.text.data.batches import Drawing
from experiments.text.data.samplers import Sampler
from experiments.text.model import Pooling
from experiments.text.trunk import MINILM


@dataclass(frozen=True)
class TextRecipe:
    """Trunk, data, schedule and measurement.

    Attributes:
        trunk: Id or folder of a Hugging Face encoder.
        pooling: How a head reads the tokens.
        max_length: Tokens of a sentence or a pair, at most.
        cut: Training sentences of a task, at most; `None` uses all.
        batch: Rows a step.
        batches: `"mixed"` or `"homogeneous"`, see `Drawing`.
        sampler: How often each task is drawn.
        temperature: Of the sampler of that name.
        start_steps: Of all tasks together, before the rows: with 0 rows begin with the pretrained trunk, otherwise with one model
            per seed that has been trained for so many steps, to its plateau, and single-task rows with its trunk and head, too.
        steps: Of every row of all tasks; a model of one task sees as many of its sentences as these see of it.
        expand_after: Share of the steps after which conflicts are measured and the plan is applied: heads have warmed up then.
        analysis_samples: Training sentences of each task that the analysis reads.
        variance_ratio: r of the analysis.
        learning_rate: Peak learning rate of the trunk.
        row_rate: Peak learning rate of rows, as a multiple of that of what they begin with.
        head_rate: Learning rate of the heads, as a multiple of the trunk's.
        insert_rate: Learning rate of modulators, task tokens and a task's own norms and biases, as a multiple of the trunk's.
        low_rank_rate: Learning rate of low-rank updates, as a multiple of the trunk's.
        copies_rate: Learning rate of copies of blocks, as a multiple of the trunk's.
        weight_decay: Decoupled; on matrices of trunk, copies of blocks and heads alone.
        warmup: Share of the steps over which the learning rate rises to its peak, from where it falls in a line to zero.
        clip: Norm that the gradient is cut to.
        fraction: Share of the blocks for modulators, for task tokens, for updates.
        rank: Of low-rank updates.
        precision: `"bfloat16"` runs the trunk under autocast: about three times as fast on CPUs that have it.
    """

    trunk: str = MINILM
    pooling: Pooling = "mean"
    max_length: int = 128
    cut: int | None = 20_000
    batch: int = 32
    batches: Literal["mixed", "homogeneous"] = "mixed"
    sampler: Sampler = "square root"
    temperature: float = 10.0
    start_steps: int = 0
    steps: int = 2500
    expand_after: float = 0.1
    analysis_samples: int = 256
    variance_ratio: float = 100.0
    learning_rate: float = 1e-4
    row_rate: float = 1.0
    head_rate: float = 10.0
    insert_rate: float = 10.0
    low_rank_rate: float = 10.0
    copies_rate: float = 3.0
    weight_decay: float = 0.01
    warmup: float = 0.06
    clip: float = 1.0
    fraction: float = 0.5
    rank: int = 3
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 <= self.expand_after < 1 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"steps={self.steps}, expand_after={self.expand_after}, warmup={self.warmup}: give at least 2 steps, and shares "
                "of them of at least 0 and below 1."
            )
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction}: give a share of the blocks above 0 and up to 1.")
        for name in (
            "learning_rate",
            "row_rate",
            "head_rate",
            "insert_rate",
            "low_rank_rate",
            "copies_rate",
            "clip",
            "analysis_samples",
            "rank",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a number above 0.")

    @property
    def expand_at(self) -> int:
        """The step at which conflicts are measured and the plan is applied."""
        return int(self.expand_after * self.steps)

    def drawing(self, seed: int, steps: int | None = None) -> Drawing:
        """How the batches of a run are drawn.

        Args:
            seed: Of the draws.
            steps: Of the run, if not the recipe's.
        """
        return Drawing(self.sampler, self.batches, self.batch, steps or self.steps, seed, self.temperature)
