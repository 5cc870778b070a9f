"""What a model predicts for files of sentences, and how good that is."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from experiments.text.data.suite import Batch, Encoded, TextSuite
from experiments.text.data.tasks import TextTask
from experiments.text.training import prediction_of, rows_of_tasks

Figures = dict[str, dict[str, float]]
"""By task, its measures by name."""


@torch.no_grad()
def predict(
    model: nn.Module, suite: TextSuite, task: TextTask, data: Encoded, *, precision: str = "float32", batch: int = 64
) -> Float[Tensor, "sentences outputs"]:
    """What a model predicts for the sentences of one task: scores of the classes, or numbers on the scale of the targets.

    Args:
        model: In training mode or not; it is left in evaluation mode.
        suite: Of the model.
        task: One of its tasks.
        data: Sentences of that task.
        precision: `"bfloat16"` for autocast.
        batch: Sentences at a time.
    """
    model.eval()
    device = next(model.parameters()).device
    place = [own.name for own in suite.tasks].index(task.name)
    predicted = torch.zeros(len(data), task.outputs)
    for rows in data.lengths.argsort(descending=True, stable=True).split(batch):
        inputs = suite.padded([data.sentence(row) for row in rows.tolist()])
        given = Batch(inputs, torch.full((len(rows),), place), torch.zeros(len(rows))).to(device)
        half = precision == "bfloat16"
        with rows_of_tasks(model, suite, given), torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            predicted[rows] = prediction_of(task.name, model(**given.inputs)).float().cpu()
    return suite.from_unit(task.name, predicted) if task.labels is None else predicted


def evaluate(model: nn.Module, suite: TextSuite, *, precision: str = "float32") -> Figures:
    """Every measure of every task, over each whole file; with several files the file's name goes before the measure's."""
    figures: Figures = {}
    for task in suite.tasks:
        own = figures[task.name] = {}
        for name, data in zip(task.dev, suite.dev[task.name], strict=True):
            predicted = predict(model, suite, task, data, precision=precision)
            for measure in task.measures:
                key = measure.name if len(task.dev) == 1 else f"{name} {measure.name}"
                own[key] = measure(predicted, data.targets)
    return figures


def score(measures: Mapping[str, float]) -> float:
    """A task's score: the mean of its measures.

    Example:
        >>> score({"Pearson": 88.0, "Spearman": 86.0})
        87.0
    """
    return statistics.fmean(measures.values())


def averaged(tasks: Sequence[TextTask]) -> list[TextTask]:
    """The tasks that count in the average: all that do not say otherwise, or all if every one does."""
    return [task for task in tasks if task.averaged] or list(tasks)


def average(figures: Figures, tasks: Sequence[TextTask]) -> float:
    """The mean of the tasks' scores."""
    return statistics.fmean(score(figures[task.name]) for task in averaged(tasks))


def how_averaged(tasks: Sequence[TextTask]) -> str:
    """In words, how `average` is formed.

    Example:
        >>> from experiments.text.data.tasks import classes, number
        >>> how_averaged((classes("spam", ("no", "yes")), number("stars")))
        'unweighted mean over spam (mean of accuracy and F1), stars (mean of Pearson and Spearman)'
    """
    counted = averaged(tasks)
    parts = [f"{task.name} ({_in_words(task)})" for task in counted]
    left = [task.name for task in tasks if task not in counted]
    return f"unweighted mean over {', '.join(parts)}" + (f"; {', '.join(left)} is not in it" if left else "")


def _in_words(task: TextTask) -> str:
    names = [measure.name for measure in task.measures]
    own = names[0] if len(names) == 1 else f"mean of {' and '.join(names)}"
    return own if len(task.dev) == 1 else f"{own}, mean over {' and '.join(task.dev)}"
