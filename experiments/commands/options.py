"""What every command on a dense suite is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.dense.backbones.few_images import FewImagesRecipe, few_images_recipe
from experiments.dense.experiment import Bench
from experiments.dense.recipe import FEW, PLATEAU, SETTLED, TRANSFER, Recipe

REGIMES = {"transfer": TRANSFER, "few": FEW, "plateau": PLATEAU, "settled": SETTLED}


@dataclass(frozen=True)
class Options:
    """Which runs of a suite are meant.

    Attributes:
        suite: `scenes` is rendered; `nuclei` reads real microscopy from `--data`.
        data: Archive or folder of the suite's data.
        regime: `transfer`: a trunk that knows the tasks meets new images; `few`: it meets few, for
            many epochs; `plateau`: a small trunk at its end; `settled`: the same trunk, which then moves little.
        seeds: Of first weights and data order; every method runs once per seed, and is compared within seeds.
        steps: Training steps of each row, if not the recipe's.
        width: Channels of the trunk, if not the recipe's: what rows begin with is then trained anew, once.
        trunk: `dinov2-s`, or a vision transformer by timm's name: rows begin with its pretrained weights, and train on few images
            for many epochs, in the place of a regime.
        trunk_weights: A file with the weights of such a trunk; timm's own by default.
        size: Height and width of the images for such a trunk, in pixels.
        images: How many such a trunk is trained on.
        weights: Of the losses, from the start of what rows begin with: `common`, those in common use, or `tuned`, those that
            serve plain training best.
        out: Folder of the results, by default runs/SUITE-REGIME, with -tuned for such weights and -wide64 for such a width. What
            is finished there is used again.
    """

    suite: Annotated[Literal["scenes", "nuclei"], tyro.conf.Positional]
    data: Path | None = None
    regime: Literal["transfer", "few", "plateau", "settled"] = "plateau"
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = None
    width: int | None = None
    trunk: str | None = None
    trunk_weights: Path | None = None
    size: int | None = None
    images: int | None = None
    weights: Literal["common", "tuned"] = "common"
    out: Path | None = None

    def folder(self, suffix: str = "") -> Path:
        """Of the results."""
        weights = "-tuned" if self.weights == "tuned" else ""
        width = "" if self.width is None else f"-wide{self.width}"
        regime = self.regime
        if self.trunk is not None:
            own = (self.trunk, self.size, self.images, self.steps)
            regime = "-".join(str(part) for part in own if part is not None)
        return self.out or Path("runs") / f"{self.suite}-{regime}{weights}{width}{suffix}"

    def benches(self, folder: Path, held_out: Literal["test", "val"] = "test") -> Sequence[Bench]:
        """One benchmark run per seed.

        Raises:
            ValueError: There is no seed, a file is where the results should be, or the suite takes no data.
        """
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out={str(folder)!r} is a file: give a folder for the results.")
        if self.suite == "scenes" and self.data is not None:
            raise ValueError(f"data={str(self.data)!r}: the suite 'scenes' is rendered and reads none. Leave it out.")
        if not self.seeds:
            raise ValueError("seeds: give at least one whole number.")
        recipe = self.recipe()
        if isinstance(recipe, FewImagesRecipe):
            from experiments.dense.backbones.weights import first_weights

            first_weights(recipe)  # what is wrong with them is said before anything is rendered
        return [
            Bench(self.suite, recipe, folder / f"seed-{seed}", self.data, seed, held_out, self.weights)
            for seed in dict.fromkeys(self.seeds)
        ]

    def recipe(self) -> Recipe:
        """Of every row.

        Raises:
            ValueError: A number does not fit, or is for a pretrained trunk and there is none.
        """
        if self.trunk is not None:
            if self.width is not None:
                raise ValueError(
                    f"width={self.width}: trunk={self.trunk!r} has a width of its own. Leave one of them out."
                )
            weights = None if self.trunk_weights is None else str(self.trunk_weights)
            return few_images_recipe(self.trunk, weights, self.size, self.images, self.steps)
        for name in ("trunk_weights", "size", "images"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={str(getattr(self, name))!r} is for a pretrained trunk: give it, --trunk dinov2-s."
                )
        recipe = REGIMES[self.regime]
        if self.steps is not None:
            recipe = replace(recipe, steps=self.steps, expand_at=min(recipe.expand_at, self.steps // 10))
        if self.width is not None:
            recipe = replace(recipe, width=self.width)
        return recipe
