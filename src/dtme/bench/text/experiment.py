"""One seed of a run over text tasks: its settings, its data, and the files its rows leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dtme._files import read_json, write_text
from dtme.bench.text.digests import digest_of_data, digest_of_trunk
from dtme.bench.text.encoding import Reader, load
from dtme.bench.text.recipe import TextRecipe
from dtme.bench.text.suite import TextSuite
from dtme.bench.text.tasks import TextTask
from dtme.bench.text.trunk import name_of

FORMAT = "dtme.text-row"


@dataclass(frozen=True)
class TextBench:
    """One seed of a run: everything that its rows depend on.

    Attributes:
        suite: What results call the set of tasks.
        tasks: Its tasks.
        read: Reads a task's files; sent to worker processes, so a function of a module or a `functools.partial` of one.
        recipe: Every number of the training.
        out: Folder of this seed's results.
        seed: Of data order, first weights of the heads, dropout, and what methods draw.
        device: Where models are trained.
        single_rates: By task, the learning rate of its single-task row, where it is not the recipe's.
    """

    suite: str
    tasks: tuple[TextTask, ...]
    read: Reader
    recipe: TextRecipe
    out: Path
    seed: int = 0
    device: str = "cpu"
    single_rates: Mapping[str, float] = field(default_factory=dict)

    def load(self, progress: Callable[[int, int], None] | None = None) -> TextSuite:
        """The tasks with their sentences, tokenised from the cache where that was done before."""
        recipe = self.recipe
        return load(
            self.tasks, self.read, recipe.trunk, max_length=recipe.max_length, cut=recipe.cut, progress=progress
        )

    def settings(self) -> dict[str, Any]:
        """What a finished row must have been made with to be used again.

        Sentences and a trunk of one's own stand in it by digest: no folder of this machine is in it.
        """
        recipe = {**asdict(self.recipe), "trunk": name_of(self.recipe.trunk)}
        return {
            "suite": self.suite,
            "tasks": [task.name for task in self.tasks],
            "data": digest_of_data(self.tasks, self.read, recipe["cut"]),
            "seed": self.seed,
            "recipe": recipe,
            "trunk_files": digest_of_trunk(self.recipe.trunk),
            "single_rates": dict(self.single_rates),
        }


def path_of(bench: TextBench, name: str, suffix: str) -> Path:
    """Where a row keeps its figures (json) or, unfinished, its state (pt)."""
    return bench.out / "rows" / f"{name.replace(' ', '-')}.{suffix}"


def figures(bench: TextBench, name: str) -> dict[str, Any]:
    """What a finished row left.

    Raises:
        OSError: It is not finished.
        ValueError: The file is not one of these.
    """
    path = path_of(bench, name, "json")
    return read_json(path.read_text(encoding="utf-8"), FORMAT, str(path))


def keep(bench: TextBench, name: str, found: Mapping[str, Any]) -> None:
    """Write down what a row found, with the settings it was made with; a row is finished when this file is there."""
    data = {"format": FORMAT, "version": 1, "settings": bench.settings(), **found}
    write_text(path_of(bench, name, "json"), json.dumps(data, indent=1) + "\n")


def is_done(bench: TextBench, name: str) -> bool:
    """Whether a row was finished before, with the same settings."""
    try:
        return figures(bench, name)["settings"] == json.loads(json.dumps(bench.settings()))
    except (OSError, ValueError, KeyError):
        return False
