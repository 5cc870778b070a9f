"""One seed of a suite: what all that it trains depends on, and the files that its rows leave."""

from __future__ import annotations

import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dtme._files import read_json, read_text, write_json
from experiments.runner.processes import by_first


class Experiment(ABC):
    """One seed of a suite; those of the dense suites and of text tasks say what they are made of.

    A row is what one method trains. It keeps its figures in a `.json`, by which it is finished; what is unfinished, in a `.pt`.

    Attributes:
        FORMAT: What a row's file of figures says it is.
        DASHED: What of a row's name is a dash in the names of its files.
        suite: What results call the set of tasks.
        recipe: Every number of the training.
        out: Folder of all that the seed leaves.
        seed: Of data order, first weights and all else that is drawn.
    """

    FORMAT: ClassVar[str]
    DASHED: ClassVar[str]
    suite: Any
    recipe: Any
    out: Path
    seed: int

    @abstractmethod
    def load(self, report: Any = None) -> Any:
        """The suite's data, from the cache where it has been made before."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What a finished row must have been made with to be used again."""

    @property
    def kept_every(self) -> int | None:
        """Steps after which an unfinished run is written down; `None` leaves it to the runner."""
        return None

    def made_with(self) -> dict[str, Any]:
        """What else stands in a row's file: facts that its reuse does not depend on."""
        return {}

    def path_of(self, name: str, suffix: str) -> Path:
        """Where a row keeps its figures (json), its weights (safetensors) or, unfinished, its state (pt)."""
        return self.out / "rows" / f"{re.sub(self.DASHED, '-', name)}.{suffix}"

    def read_row(self, name: str) -> dict[str, Any]:
        """What a finished row left.

        Raises:
            OSError: It is not finished.
            ValueError: The file is not one of these.
        """
        path = self.path_of(name, "json")
        return read_json(read_text(path), self.FORMAT, str(path))

    def write_row(self, name: str, found: Mapping[str, Any]) -> None:
        """Write down what a row found, with the settings it was made with; with this file it is finished."""
        data = {"format": self.FORMAT, "version": 1, "settings": self.settings(), **self.made_with(), **found}
        by_first(lambda: write_json(self.path_of(name, "json"), data, indent=1))

    def is_done(self, name: str) -> bool:
        """Whether a row was finished before, with the same settings."""
        try:
            return self.read_row(name)["settings"] == json.loads(json.dumps(self.settings()))
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(
                f"{self.path_of(name, 'json')} is not read, and made anew: {error}", UserWarning, stacklevel=2
            )
            return False
