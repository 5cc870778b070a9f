"""The plan beside a checkpoint of whatever loop: one small file, by which a fresh model becomes one that the weights fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dtme._files import parse_json, read_json, read_text, write_json
from dtme._random import random_numbers_aside
from dtme._wrappers import module_names, modules_by_any_name, unwrapped
from dtme.attach.apply import added_parameters, apply, find_applied, is_applied, remove
from dtme.attach.optimizer_group import fill, reserved_group
from dtme.attach.replan import replan
from dtme.checkpoint import files as checkpoint_files
from dtme.checkpoint.commit import place_of
from dtme.distributed.wrappers import in_first_process
from dtme.plan.plan import Plan

FORMAT = "dtme.applied"
FILE = "dtme.json"


def save_plan(model: nn.Module, folder: str | Path) -> None:
    """Write what `resume` needs beside a checkpoint, as `dtme.json`: the plan, the branches by name, or that there is none.

    The weights are saved by whoever saves those of the model, inserts among them. Of a sharded model every process has to
    call.

    Args:
        model: With or without inserts.
        folder: Of the checkpoint; made if it is not there.
    """
    in_first_process(model, lambda: write_plan(model, folder))


def write_plan(model: nn.Module, folder: str | Path) -> None:
    """As `save_plan`, in this process whatever others do."""
    write_json(Path(folder) / FILE, described(model), indent=2)


def resume(model: nn.Module, folder: str | Path | None, *, optimizer: Any = None) -> nn.Module:
    """Give a model the plan that lies beside a checkpoint, so that the checkpoint's weights fit it.

    Call it on the fresh model, before its optimizer is made and the checkpoint's states are loaded. A folder without a plan
    changes nothing; one whose file says that there was no plan takes out what the model has.

    Args:
        model: The model; where it has the plan already, it is left as it is.
        folder: That `save_plan`, one of the integrations or `save_pretrained` wrote to; `None` changes nothing.
        optimizer: If it is made already, with `parameter_groups`: its group follows.

    Returns:
        The same model.

    Raises:
        ValueError: There is no such folder, its file is corrupt, or the plan does not fit the model.
    """
    if folder is None:
        return model
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"resume(folder={str(folder)!r}): there is no such folder. Name that of a checkpoint, or None."
        )
    if (folder / FILE).is_file():
        found = read_json(read_text(folder / FILE), FORMAT, str(folder / FILE))
        adopt(model, found, source=str(folder / FILE), optimizer=optimizer)
    elif _is_ours(place_of(folder, checkpoint_files.CONFIG)):
        saved = checkpoint_files.read(folder)
        found = {"plan": saved.plan.to_dict(), "branches": saved.branches}
        adopt(model, found, source=str(folder), optimizer=optimizer)
    return model


def described(model: nn.Module) -> dict[str, Any]:
    """What was applied to a model, or to a module in it, as plain data."""
    model = unwrapped(model)
    told: dict[str, Any] = {"format": FORMAT, "version": 1, "plan": None, "branches": None, "at": ""}
    if not is_applied(model):
        return told
    owner, applied = find_applied(model)
    place = module_names(model)[owner]
    return told | {"plan": applied.plan.to_dict(), "branches": applied.branches, "at": place}


def adopt(model: nn.Module, told: Mapping[str, Any], *, source: str, optimizer: Any = None) -> None:
    """Make a model what `described` told of another one. No random number that others draw is another for it.

    Raises:
        ValueError: The data is malformed, or the plan does not fit the model, which is left as it was.
    """
    model = unwrapped(model)
    fields, branches, place = told.get("plan"), told.get("branches"), told.get("at", "")
    texts = branches is None or (
        isinstance(branches, Mapping) and all(isinstance(one, str) for one in branches.values())
    )
    if not isinstance(place, str) or not texts:
        raise ValueError(f"{source}: 'at' is {place!r} and 'branches' {branches!r}, expected a name and names by task.")
    held = modules_by_any_name(model).get(place)
    if held is None:
        raise ValueError(f"{source}: its plan is for a module {place!r}, which this model does not have.")
    owner = unwrapped(held)
    with random_numbers_aside():
        if fields is None:
            remove(model, optimizer)
            return
        plan = Plan.from_dict(fields, source)
        if not is_applied(model):
            apply(owner, plan, branches=branches)
        elif find_applied(model)[0] is not owner:
            raise ValueError(
                f"{source}: its plan is for {place or 'the model itself'!r}, and this model has one elsewhere. Call "
                "dtme.remove(model) first."
            )
        elif find_applied(model)[1].plan != plan:
            replan(owner, plan, branches=branches)
    if optimizer is not None:
        fill(reserved_group(optimizer, "resume"), optimizer, added_parameters(model))


def _is_ours(config: Path) -> bool:
    """Whether a `config.json` is one of `save_pretrained`, and none of transformers'."""
    if not config.is_file():
        return False
    try:
        data = parse_json(read_text(config), str(config))
    except ValueError:
        return False
    return isinstance(data, dict) and data.get("format") == checkpoint_files.FORMAT
