"""One seed of a benchmark run: its settings, its data, and the files its rows leave."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from experiments.dense.backbones.few_images import FewImagesRecipe
from experiments.dense.recipe import Recipe
from experiments.dense.suite import Split, Suite
from experiments.runner.environment import hardware, versions
from experiments.runner.jobs import Report
from experiments.training.experiment import Experiment

LOSS_WEIGHTS = {
    "scenes": {"semseg": 1.0, "depth": 1.0, "normals": 10.0, "edges": 50.0},
    "nuclei": {"mask": 1.0, "boundary": 50.0, "horizontal": 10.0, "vertical": 10.0},
}
"""Per suite, the weight of each task's loss: those in common use for the tasks of NYUD-v2, and their like for nuclei."""

TUNED_WEIGHTS = {
    "scenes": {"semseg": 3.0, "depth": 1.0, "normals": 10.0, "edges": 50.0 / 9},
    "nuclei": {"mask": 1.0, "boundary": 50.0 / 9, "horizontal": 30.0, "vertical": 30.0},
}
"""Those that serve plain training best on the validation split, of the 15 and 14 compared in results/tuning."""


@dataclass(frozen=True)
class Bench(Experiment):
    """One seed of a benchmark run: everything that its rows depend on.

    Attributes:
        suite: Name of the suite.
        recipe: Every number of the training.
        out: Folder of all results.
        data: Where the suite's data is, if it needs any.
        seed: Of data order and first weights.
        held_out: The split that rows are measured on: `"val"` for whoever chooses settings, `"test"` for all else.
        weights: Of the losses, for what rows begin with and for every row without weights of its own: those in common use, or
            those that serve plain training best.
    """

    FORMAT: ClassVar[str] = "dtme.row"
    DASHED: ClassVar[str] = r"[^\w.+%]+"
    suite: str
    recipe: Recipe
    out: Path
    data: Path | None = None
    seed: int = 0
    held_out: Literal["test", "val"] = "test"
    weights: Literal["common", "tuned"] = "common"

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each task's loss."""
        return (LOSS_WEIGHTS if self.weights == "common" else TUNED_WEIGHTS)[self.suite]

    def load(self, report: Report | None = None) -> Suite:
        """The suite with the weights of its losses, from the cache where it has been made before."""
        suite = self._data(report).weighted(self.loss_weights)
        if self.held_out == "val":
            assert suite.val is not None
            suite = replace(suite, test=suite.val)
        if self.recipe.start == "plateau":
            assert isinstance(suite.pretrain, Split)
            assert isinstance(suite.train, Split)
            whole = _together(suite.pretrain, suite.train)
            return replace(suite, pretrain=whole, train=whole)
        return suite

    @property
    def choices(self) -> dict[str, str]:
        """What was chosen where there is more than one way, in words, for every table; nothing where there is one."""
        return {}

    def _data(self, report: Report | None) -> Suite:
        size = self.recipe.size
        assert isinstance(size, int)
        if self.suite == "nuclei":
            from experiments.dense import nuclei

            if self.data is None:
                raise ValueError("the suite 'nuclei' needs its data: --data FOLDER_OR_TAR.")
            return _cut(nuclei.suite(self.data, size=size, progress=report), self.recipe)
        from experiments.dense import scenes

        pretrain, train, test = self.recipe.images
        val = test if self.held_out == "val" else 0
        return scenes.suite(size=size, pretrain=pretrain, train=train, test=test, val=val, progress=report)

    def settings(self) -> dict[str, Any]:
        """What a finished row must have been made with to be used again."""
        recipe = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.recipe).items()}
        data = (
            None if self.data is None else [self.data.name, self.data.stat().st_size if self.data.is_file() else None]
        )
        return {
            "suite": self.suite,
            "data": data,
            "seed": self.seed,
            "recipe": recipe,
            "loss_weights": self.loss_weights,
            "held_out": self.held_out,
        }

    def made_with(self) -> dict[str, Any]:
        """Versions and hardware."""
        return {"made_with": {"versions": versions(), "hardware": hardware()}}


def _cut(suite: Suite, recipe: Recipe) -> Suite:
    """The suite with as few training images as a recipe of few images says: tiles of all pictures, drawn once for all seeds."""
    if not isinstance(recipe, FewImagesRecipe):
        return suite
    assert isinstance(suite.train, Split)
    wanted = recipe.images[1]
    if wanted > len(suite.train):
        raise ValueError(f"images={wanted}: {suite.name} has {len(suite.train)} to train on. Give at most that.")
    rows = torch.randperm(len(suite.train), generator=torch.Generator().manual_seed(0))[:wanted]
    return replace(suite, train=suite.train.some(rows))


def _together(one: Split, two: Split) -> Split:
    targets = {name: torch.cat([target, two.targets[name]]) for name, target in one.targets.items()}
    return Split(torch.cat([one.images, two.images]), targets)
