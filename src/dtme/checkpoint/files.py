"""The files of a checkpoint: written together or not at all, and read as files from anywhere are read.

The format has a version, in `config.json`. It rises when an older library could not read what a newer one writes, and the
older one says so. Every version that was ever released stays readable: what its files lack keeps the meaning it had then.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from dtme._files import digest_of_file, read_json, read_text, with_digest
from dtme.checkpoint.commit import place_of, written_together
from dtme.plan.plan import Plan

FORMAT = "dtme.checkpoint"
VERSIONS = (1, 2)
"""In version 1 `scale` held `W`; it holds `W - 1` since, and the names of branches are kept."""
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
BASE = "base.safetensors"
_OF_TENSORS = (KeyError, AttributeError, TypeError, ValueError, OverflowError, RuntimeError, MemoryError)
"""What else is raised where the head of a file of tensors tells of kinds or sizes that there are none of."""


@dataclass(frozen=True)
class Checkpoint:
    """What the files hold.

    Attributes:
        plan: With the tasks in their order.
        tasks: Those whose inserts were saved.
        base: The identity of the base, as `base.describe` makes it.
        weights: The inserts' parameters and buffers, each task's share by itself.
        base_weights: The base's own parameters and buffers, empty where they were not saved.
        branches: Where each task leaves the trunk, by name, if `apply` was told.
    """

    plan: Plan
    tasks: tuple[str, ...]
    base: dict[str, Any]
    weights: Mapping[str, Tensor]
    base_weights: Mapping[str, Tensor]
    branches: Mapping[str, str] | None = None


def write(folder: Path, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Write the files of a checkpoint and return their names.

    Each is complete before any counts, and one rename makes all of them count. They bear a common mark, by which a reader sees
    if a copy of one file alone has mixed two checkpoints, and `config.json` holds a digest of each, itself included.
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
        **({} if checkpoint.branches is None else {"branches": dict(checkpoint.branches)}),
        "base": checkpoint.base | {"weights": {place: _line(values) for place, values in of_places.items()}},
    }
    contents = {WEIGHTS: checkpoint.weights} | ({BASE: checkpoint.base_weights} if checkpoint.base_weights else {})
    with written_together(folder, (WEIGHTS, BASE, CONFIG)) as fresh:
        for name, tensors in contents.items():
            save_file(dict(tensors), fresh / name, metadata)
        config["files"] = {name: digest_of_file(fresh / name) for name in contents}
        (fresh / CONFIG).write_text(json.dumps(with_digest(config), indent=2) + "\n", encoding="utf-8")
    if not checkpoint.base_weights:
        (folder / BASE).unlink(missing_ok=True)
    return (CONFIG, *contents)


def read(folder: Path) -> Checkpoint:
    """Read the files of a checkpoint.

    Raises:
        ValueError: One is missing, cut short, damaged, of another format or of a newer version, or they are of two checkpoints.
    """
    for name in (CONFIG, WEIGHTS):
        if not place_of(folder, name).is_file():
            raise ValueError(f"{folder} holds no {name}: is it a folder that save_pretrained wrote?")
    data = read_json(read_text(place_of(folder, CONFIG)), FORMAT, str(folder / CONFIG), VERSIONS)
    try:
        digests = {str(name): str(digest) for name, digest in data.get("files", {}).items()}
        fields, tasks, mark, base = dict(data["plan"]), tuple(data["tasks"]), str(data["mark"]), _checked(data["base"])
        branches = data.get("branches")
        if branches is not None and not all(isinstance(name, str) for name in branches.values()):
            raise TypeError(f"branches: {branches!r}")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{folder / CONFIG}: 'plan', 'tasks', 'mark', 'base' or 'branches' is missing or malformed ({error!r}). Save once "
            "more, or take the file from where it was saved."
        ) from error
    plan = Plan.from_dict(fields, str(folder / CONFIG))
    if not tasks or not all(task in plan.tasks for task in tasks) or len(set(tasks)) < len(tasks):
        raise ValueError(f"{folder / CONFIG}: tasks {tasks!r} were saved, but its plan knows {plan.tasks}.")
    if not digests:
        logging.getLogger("dtme").warning(
            "%s was written before checkpoints had digests: a damaged value in it would not be noticed. Saved once more, it has.",
            folder,
        )
    own = _tensors(folder, BASE, mark, digests) if data.get("has_base_weights") else {}
    weights = _tensors(folder, WEIGHTS, mark, digests)
    _check_held(plan, tasks, weights, folder)
    if data["version"] == 1:
        weights = {name: t - 1 if ".dtme.scale." in f".{name}" else t for name, t in weights.items()}
    return Checkpoint(plan, tasks, base, weights, own, branches)


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


def undigested(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` holds, without the digests: as earlier versions wrote it."""
    return {name: value for name, value in config.items() if name not in ("digest", "files")}


def _tensors(folder: Path, name: str, mark: str, digests: Mapping[str, str]) -> dict[str, Tensor]:
    path = place_of(folder, name)
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("mark", mark)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, OSError, *_OF_TENSORS) as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}). It may be cut short.") from error
    if found != mark:
        raise ValueError(
            f"{path} and {CONFIG} beside it are of two checkpoints ({found}, {mark}): one was copied without the other. Save "
            "once more."
        )
    if digests and digests.get(name) != digest_of_file(path):
        raise ValueError(
            f"{path} is damaged: it does not hold what was written (its digest differs from the one in {CONFIG}). Take it from "
            "where it was saved, or save once more."
        )
    return tensors


def _check_held(plan: Plan, tasks: Sequence[str], weights: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse a plan that asks for more than the weights hold, before anything of it is made.

    Raises:
        ValueError: Something that it gives to a task is not there, or has another size.
    """

    def check(name: str, size: int | None) -> None:
        found = weights.get(name)
        if found is None or (size is not None and (found.ndim < 2 or len(found) != size)):
            shape = "missing" if found is None else tuple(found.shape)
            expected = "what the plan gives" if found is None or size is None else (size, *found.shape[1:])
            raise ValueError(
                f"{folder / WEIGHTS} does not fit {CONFIG} beside it: {name!r} has shape {shape}, expected {expected}."
            )

    held = {name.partition(".dtme.")[0] for name in weights if ".dtme.low_rank." in name}
    for block, given in plan.adapt.items():
        if block not in held and set(given) & set(tasks):
            check(f"{block}.dtme.low_rank", None)
    for task in tasks:
        for name in weights:
            if ".dtme.low_rank." in name and name.endswith(f".down.{task}"):
                check(name, plan.rank)
        for block in (block for block, given in plan.expand.items() if task in given):
            check(f"{block}.dtme.tokens.{task}", plan.tokens_per_task)
