"""The files of a checkpoint: written together or not at all, and read as files from anywhere are read.

The format has a version, in `config.json`. It rises when an older library could not read what a newer one writes, and the
older one says so. Every version that was ever released stays readable: what its files lack keeps the meaning it had then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from dtme._files import read_json, read_text, written_whole
from dtme.plan import Plan

FORMAT = "dtme.checkpoint"
VERSIONS = (1,)
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
BASE = "base.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What the files hold.

    Attributes:
        plan: With the tasks in their order.
        tasks: Those whose inserts were saved.
        base: The identity of the base, as `base.describe` makes it.
        weights: The inserts' parameters and buffers, each task's share by itself.
        base_weights: The base's own parameters and buffers, empty where they were not saved.
    """

    plan: Plan
    tasks: tuple[str, ...]
    base: dict[str, Any]
    weights: Mapping[str, Tensor]
    base_weights: Mapping[str, Tensor]


def write(folder: Path, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Write the files of a checkpoint and return their names.

    Each is complete before any takes its place. They bear a common mark, by which a reader sees if an interruption just
    then, or a copy of one file alone, has mixed two checkpoints.
    """
    mark = hashlib.sha256(save(dict(checkpoint.weights))).hexdigest()[:16]
    metadata = {"format": "pt", "mark": mark}
    of_places: Mapping[str, Sequence[float]] = checkpoint.base["weights"]
    config = {
        "format": FORMAT,
        "version": VERSIONS[-1],
        "mark": mark,
        "tasks": checkpoint.tasks,
        "has_base_weights": bool(checkpoint.base_weights),
        "plan": checkpoint.plan.to_dict(),
        "base": checkpoint.base | {"weights": {place: _line(values) for place, values in of_places.items()}},
    }
    with ExitStack() as stack:
        places = {name: stack.enter_context(written_whole(folder / name)) for name in (CONFIG, WEIGHTS)}
        save_file(dict(checkpoint.weights), places[WEIGHTS], metadata)
        if checkpoint.base_weights:
            places[BASE] = stack.enter_context(written_whole(folder / BASE))
            save_file(dict(checkpoint.base_weights), places[BASE], metadata)
        places[CONFIG].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if not checkpoint.base_weights:
        (folder / BASE).unlink(missing_ok=True)
    return tuple(places)


def read(folder: Path) -> Checkpoint:
    """Read the files of a checkpoint.

    Raises:
        ValueError: One is missing, cut short, of another format or of a newer version, or they are of two checkpoints.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}: is it a folder that save_pretrained wrote?")
    data = read_json(read_text(folder / CONFIG), FORMAT, str(folder / CONFIG), VERSIONS)
    try:
        fields, tasks, mark, base = dict(data["plan"]), tuple(data["tasks"]), str(data["mark"]), _checked(data["base"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{folder / CONFIG}: 'plan', 'tasks', 'mark' or 'base' is missing or malformed ({error!r}). Save once more, or take "
            "the file from where it was saved."
        ) from error
    plan = Plan.from_dict(fields, str(folder / CONFIG))
    if not tasks or set(tasks) - set(plan.tasks):
        raise ValueError(f"{folder / CONFIG}: tasks {tasks!r} were saved, but its plan knows {plan.tasks}.")
    own = _tensors(folder / BASE, mark) if data.get("has_base_weights") else {}
    return Checkpoint(plan, tasks, base, _tensors(folder / WEIGHTS, mark), own)


def _line(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _checked(base: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a base, if it has the form that `base.describe` gives it."""
    trunk = [
        {
            "blocks": [str(name) for name in kind["blocks"]],
            "type": str(kind["type"]),
            "width": None if kind["width"] is None else int(kind["width"]),
            "parameters": dict(kind["parameters"]),
        }
        for kind in base["trunk"]
    ]
    weights = {str(place): [float(value) for value in line.split()] for place, line in base["weights"].items()}
    names = {key: None if base[key] is None else str(base[key]) for key in ("class", "name", "revision")}
    return {**names, "trunk": trunk, "weights": weights}


def _tensors(path: Path, mark: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("mark", mark)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}). It may be cut short.") from error
    if found != mark:
        raise ValueError(
            f"{path} and {CONFIG} beside it are of two checkpoints ({found}, {mark}): saving was interrupted between the two, or "
            "one was copied without the other. Save once more."
        )
    return tensors
