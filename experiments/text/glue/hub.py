"""GLUE from the Hugging Face hub, `nyu-mll/glue`, where a network is there."""

from __future__ import annotations

from typing import Any

from experiments.text.data.files import Sentences
from experiments.text.data.tasks import TextTask

REPOSITORY = "nyu-mll/glue"

_CONFIGURATIONS = {"SST-2": "sst2", "STS-B": "stsb"}
"""What the hub calls the tasks whose name there is not simply in small letters."""
_COLUMNS = {"MRPC": ("sentence1", "sentence2"), "MNLI": ("premise", "hypothesis")}
"""Where its columns are called otherwise than in the standard files."""
_SPLITS = {"dev": "validation", "dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"}


def read_hub(task: TextTask) -> dict[str, Sentences]:
    """A task's files from the hub; classes stand there as indices, in the same order as here.

    Raises:
        ImportError: `datasets` is not installed; the message says how to.
        ValueError: A label is none of the task's; names split and row.
    """
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError as why:
        raise ImportError(
            "GLUE comes from the hub by the package `datasets`: pip install 'dtme[glue]'. Or give the folder of its "
            "files: --data."
        ) from why
    whole = load_dataset(REPOSITORY, _CONFIGURATIONS.get(task.name, task.name.lower()))
    return {name: _sentences(whole[_SPLITS.get(name, name)], task, name) for name in (task.train, *task.dev)}


def _sentences(rows: Any, task: TextTask, name: str) -> Sentences:
    source = f"{REPOSITORY}, {task.name}, {name}"
    columns = [rows[column] for column in _COLUMNS.get(task.name, task.text)]
    targets = []
    for row, label in enumerate(rows["label"]):
        if task.labels is not None and label not in range(len(task.labels)):
            raise ValueError(
                f"{source}, row {row}: label {label!r} is none of 0 to {len(task.labels) - 1}. Is it a test split?"
            )
        try:
            targets.append(float(label) if task.labels is not None else task.target_of(str(label)))
        except ValueError as why:
            raise ValueError(f"{source}, row {row}: {why}") from None
    if not targets:
        raise ValueError(f"{source} has no row.")
    return Sentences(list(zip(*columns, strict=True)), targets, source)
