"""The nine tasks, with their files, official row counts and measures."""

from __future__ import annotations

from pathlib import Path

from experiments.text.data.files import Sentences, find_file, read_file
from experiments.text.data.metrics import ACCURACY, F1, MATTHEWS, PEARSON, SPEARMAN
from experiments.text.data.tasks import TextTask

PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

TASKS = (
    TextTask(
        "CoLA",
        ("sentence",),
        "label",
        ("0", "1"),
        (MATTHEWS,),
        header=("source", "label", "star", "sentence"),
        rows={"train": 8551, "dev": 1043},
    ),
    TextTask("SST-2", ("sentence",), "label", ("0", "1"), (ACCURACY,), rows={"train": 67349, "dev": 872}),
    TextTask(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        ("0", "1"),
        (F1, ACCURACY),
        rows={"train": 3668, "dev": 408},
    ),
    TextTask(
        "STS-B",
        PAIR,
        "score",
        None,
        (PEARSON, SPEARMAN),
        bounds=(0.0, 5.0),
        rows={"train": 5749, "dev": 1500},
    ),
    TextTask(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        ("0", "1"),
        (F1, ACCURACY),
        rows={"train": 363846, "dev": 40430},
        other_rows={"train": (363849,)},  # the archive of 2018; the hub's copy has three fewer
        malformed=100,  # questions of the official file hold line breaks; how many, copies do not agree on
    ),
    TextTask(
        "MNLI",
        PAIR,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        (ACCURACY,),
        dev=("dev_matched", "dev_mismatched"),
        rows={"train": 392702, "dev_matched": 9815, "dev_mismatched": 9832},
    ),
    TextTask("QNLI", ("question", "sentence"), "label", ENTAILMENT, (ACCURACY,), rows={"train": 104743, "dev": 5463}),
    TextTask("RTE", PAIR, "label", ENTAILMENT, (ACCURACY,), rows={"train": 2490, "dev": 277}),
    TextTask("WNLI", PAIR, "label", ("0", "1"), (ACCURACY,), rows={"train": 635, "dev": 71}, averaged=False),
)
"""In the order of every table. WNLI's development sentences contradict its training sentences: it is left out of averages."""


def glue_task(name: str) -> TextTask:
    """The task of that name.

    Raises:
        ValueError: There is none; the message lists them.

    Example:
        >>> glue_task("RTE").rows["dev"]
        277
    """
    for task in TASKS:
        if task.name == name:
            return task
    raise ValueError(f"tasks: GLUE has no {name!r}. Choose from: {', '.join(task.name for task in TASKS)}.")


def folders_in(data: Path) -> dict[str, Path]:
    """The folder of each task that there is, by the task's name.

    A folder is called as its task (`RTE`), or begins with the task's name and an underscore (`QNLI_devsplit`), as one calls
    a split of one's own.

    Raises:
        FileNotFoundError: `data` is no folder, or holds no task.
        ValueError: A task has several folders.
    """
    if not data.is_dir():
        raise FileNotFoundError(
            f"--data {data} is no folder. Give the one that holds {', '.join(t.name for t in TASKS[:3])} and so on."
        )
    found = {}
    for task in TASKS:
        own = [data / task.name] if (data / task.name).is_dir() else sorted(data.glob(f"{task.name}_*/"))
        if len(own) > 1:
            raise ValueError(f"{data} has {own[0].name} and {own[1].name} for {task.name}: rename or remove one.")
        if own:
            found[task.name] = own[0]
    if not found:
        raise FileNotFoundError(
            f"--data {data} holds none of the folders {', '.join(task.name for task in TASKS)}. Is it a level too "
            "high or too low?"
        )
    return found


def read_glue(data: Path, task: TextTask) -> dict[str, Sentences]:
    """A task's files out of the standard folders.

    Raises:
        FileNotFoundError: The task has no folder, or a file is missing in it.
        ValueError: A file holds what it must not.
    """
    folders = folders_in(data)
    if task.name not in folders:
        raise FileNotFoundError(
            f"{data} has no folder {task.name}; it has {', '.join(folders)}. Leave the task out, or fetch it."
        )
    return {name: read_file(find_file(folders[task.name], name), task) for name in (task.train, *task.dev)}
