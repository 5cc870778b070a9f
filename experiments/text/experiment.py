"""One seed of a run over text tasks: its settings, its data, and the files its rows leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from experiments.text.data.encoding import Reader, load
from experiments.text.data.fingerprints import digest_of_data, digest_of_trunk
from experiments.text.data.suite import TextSuite
from experiments.text.data.tasks import TextTask
from experiments.text.recipe import TextRecipe
from experiments.text.trunk import name_of
from experiments.training.experiment import Experiment


@dataclass(frozen=True)
class TextBench(Experiment):
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

    FORMAT: ClassVar[str] = "dtme.text-row"
    DASHED: ClassVar[str] = " "
    suite: str
    tasks: tuple[TextTask, ...]
    read: Reader
    recipe: TextRecipe
    out: Path
    seed: int = 0
    device: str = "cpu"
    single_rates: Mapping[str, float] = field(default_factory=dict)

    def load(self, report: Callable[[int, int], None] | None = None) -> TextSuite:
        """The tasks with their sentences, tokenised from the cache where that was done before."""
        recipe = self.recipe
        return load(self.tasks, self.read, recipe.trunk, max_length=recipe.max_length, cut=recipe.cut, progress=report)

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
