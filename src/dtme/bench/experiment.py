"""One seed of a benchmark run: its settings, its data, and the files its rows leave."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dtme._files import read_json, write_text
from dtme.bench.hardware import hardware, versions
from dtme.bench.jobs import Report
from dtme.bench.recipe import Recipe
from dtme.bench.suite import Split, Suite

FORMAT = "dtme.row"

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
class Bench:
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

    suite: Literal["scenes", "nuclei"]
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
            whole = _together(suite.pretrain, suite.train)
            return replace(suite, pretrain=whole, train=whole)
        return suite

    def _data(self, report: Report | None) -> Suite:
        if self.suite == "nuclei":
            from dtme.bench import nuclei

            if self.data is None:
                raise ValueError("the suite 'nuclei' needs its data: --data FOLDER_OR_TAR.")
            return nuclei.suite(self.data, size=self.recipe.size, progress=report)
        from dtme.bench import scenes

        pretrain, train, test = self.recipe.images
        val = test if self.held_out == "val" else 0
        return scenes.suite(size=self.recipe.size, pretrain=pretrain, train=train, test=test, val=val, progress=report)

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


def figures(bench: Bench, name: str) -> dict[str, Any]:
    """What a finished row left: metrics, curves, seconds.

    Raises:
        ValueError: The file is not one of these.
    """
    path = path_of(bench, name, "json")
    return read_json(path.read_text(encoding="utf-8"), FORMAT, str(path))


def path_of(bench: Bench, name: str, suffix: str) -> Path:
    """Where a row keeps its figures (json), its weights (safetensors) or, unfinished, its state (pt)."""
    plain = re.sub(r"[^\w.+%]+", "-", name)
    return bench.out / "rows" / f"{plain}.{suffix}"


def keep(bench: Bench, name: str, found: dict[str, Any]) -> None:
    """Write down what a row found, and the settings, versions and hardware that made it; with this file it is finished."""
    made_with = {"versions": versions(), "hardware": hardware()}
    data = {"format": FORMAT, "version": 1, "settings": bench.settings(), "made_with": made_with, **found}
    write_text(path_of(bench, name, "json"), json.dumps(data, indent=1) + "\n")


def is_done(bench: Bench, name: str) -> bool:
    """Whether a row was finished before, with the same settings."""
    try:
        return figures(bench, name)["settings"] == bench.settings()
    except (OSError, ValueError):
        return False


def _together(one: Split, two: Split) -> Split:
    targets = {name: torch.cat([target, two.targets[name]]) for name, target in one.targets.items()}
    return Split(torch.cat([one.images, two.images]), targets)
