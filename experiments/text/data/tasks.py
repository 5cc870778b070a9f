"""What a text task is: where its sentences and targets stand in a file, and how it is scored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from experiments.text.data.metrics import ACCURACY, F1, PEARSON, SPEARMAN, Measure

WITHHELD = "is this the test split, whose targets are -1 by convention? Give a split that has its targets."
"""The remedy where a target of -1 is none of the task's."""


@dataclass(frozen=True)
class TextTask:
    """One thing to predict about a sentence, or about a pair of sentences.

    Its data is a folder with a training file and a file to measure on, `train.csv` and `dev.csv` for instance: `.csv` with
    quotes, `.tsv` without, either also as `.gz`. See `classes` and `number` for the short way to write one.

    Attributes:
        name: The task's name, which is its folder's name too.
        text: Columns of the sentence, or of the two sentences.
        target: Column of what is to be predicted.
        labels: The classes, as the file writes them, in the order of their indices; `None` where the target is a number.
        measures: What the field reports, each between 0 and 100 when all is well; their mean is the task's score.
        train: Name of the training file, without suffix.
        dev: Names of the files to measure on; the score is the mean over them.
        header: Names of the columns, where the file's first line is a sentence and not a head.
        rows: Official number of rows by file, to tell a partial copy; nothing is checked where it is empty.
        other_rows: Further numbers of rows that official copies of a file have.
        bounds: Least and greatest value of a number.
        malformed: Lines of the wrong number of columns that are left out, and counted, before they are an error.
        averaged: Whether the task counts in the average over tasks.

    Raises:
        ValueError: A field does not fit.

    Example:
        >>> TextTask("topic", ("title", "body"), "topic", labels=("sport", "trade"), measures=(ACCURACY,)).outputs
        2
    """

    name: str
    text: tuple[str, ...]
    target: str
    labels: tuple[str, ...] | None
    measures: tuple[Measure, ...]
    train: str = "train"
    dev: tuple[str, ...] = ("dev",)
    header: tuple[str, ...] | None = None
    rows: Mapping[str, int] = field(default_factory=dict, hash=False)
    other_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    bounds: tuple[float, float] = (-math.inf, math.inf)
    malformed: int = 0
    averaged: bool = True

    def __post_init__(self) -> None:
        if not self.name or "." in self.name or "/" in self.name:
            raise ValueError(f"name={self.name!r}: a task's name is not empty and holds neither a dot nor a slash.")
        if isinstance(self.text, str) or len(self.text) not in (1, 2):
            raise ValueError(
                f"text={self.text!r} of task {self.name!r}: name one or two columns, ('question', 'answer')."
            )
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"labels={self.labels!r} of task {self.name!r}: name at least two classes, each once.")
        if not self.measures or not self.dev:
            raise ValueError(f"task {self.name!r}: give at least one measure and one file to measure on.")

    @property
    def outputs(self) -> int:
        """Channels of the prediction: one per class, or one for a number."""
        return 1 if self.labels is None else len(self.labels)

    def target_of(self, text: str) -> float:
        """A target as it stands in a file: the class's index, or the number.

        Raises:
            ValueError: It is none of the classes, no number, or out of bounds; the message says what is expected.

        Example:
            >>> number("stars", bounds=(1, 5)).target_of("3.5"), classes("spam", ("no", "yes")).target_of("yes")
            (3.5, 1.0)
        """
        if self.labels is not None:
            if text not in self.labels:
                raise ValueError(
                    f"label {text!r} is none of {self.labels}: "
                    + (WITHHELD if _is_withheld(text) else f"mend the line, or name it in the labels of {self.name!r}.")
                )
            return float(self.labels.index(text))
        low, high = self.bounds
        try:
            value = float(text)
        except ValueError:
            raise ValueError(
                f"target {text!r} is no number: mend the line, or give task {self.name!r} labels."
            ) from None
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(
                f"target {text!r} is not between {low:g} and {high:g}: "
                + (WITHHELD if _is_withheld(text) else f"mend the line, or the bounds of {self.name!r}.")
            )
        return value


def _is_withheld(text: str) -> bool:
    try:
        return float(text) == -1
    except ValueError:
        return False


def classes(
    name: str, labels: tuple[str, ...], *, text: tuple[str, ...] = ("text",), target: str = "label"
) -> TextTask:
    """A task with classes, scored by accuracy; with two of them, by accuracy and by F1 of the second.

    Example:
        >>> classes("spam", ("no", "yes")).measures[1].name
        'F1'
    """
    return TextTask(name, text, target, labels, (ACCURACY,) if len(labels) > 2 else (ACCURACY, F1))


def number(
    name: str,
    *,
    text: tuple[str, ...] = ("text",),
    target: str = "label",
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> TextTask:
    """A task with a number, in any unit, scored by the correlations of Pearson and of Spearman."""
    return TextTask(name, text, target, None, (PEARSON, SPEARMAN), bounds=bounds)
