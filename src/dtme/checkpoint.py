"""Save what `apply` added, and put it into a fresh model: the plan as JSON, the parameters as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dtme._files import read_json, read_text, write_text, written_whole
from dtme.apply import apply, find_applied, is_applied, remove
from dtme.blocks import width_of
from dtme.insert import Insert
from dtme.plan import Plan

FORMAT = "dtme.checkpoint"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def save_pretrained(model: nn.Module, folder: str | Path, *, tasks: Sequence[str] | None = None) -> None:
    """Write the plan of a model and what its inserts have learnt; the model's own weights are not saved.

    Two files: `config.json` (format, task order, plan, widths and shapes of the base) and `model.safetensors`.

    Args:
        model: A model `apply` was called on.
        folder: Made if it is not there; files of an earlier save are replaced, each whole or not at all.
        tasks: Only what belongs to these tasks; the others stay in the plan, without inserts.

    Raises:
        ValueError: No plan has been applied, or a task is unknown.
    """
    owner, applied = find_applied(model)
    plan = applied.plan
    kept = plan.tasks if tasks is None else tuple(tasks)
    unknown = [task for task in kept if task not in plan.tasks]
    if unknown or not kept:
        raise ValueError(f"save_pretrained(tasks={kept!r}): give some of {plan.tasks}.")
    inserts = {name: module for name, module in owner.named_modules() if isinstance(module, Insert)}
    weights: dict[str, Tensor] = {}
    for name, insert in inserts.items():
        for own, tensor in insert.state_dict().items():
            holders = insert.expanded if own == "tokens" else insert.adapted if "low_rank" in own else insert.modulated
            rows = [row for row, task in enumerate(holders) if task in kept]
            if rows:
                weights[f"{name}.{own}"] = tensor.detach().cpu()[rows].contiguous()
    config = {
        "format": FORMAT,
        "version": 1,
        "plan": asdict(_only(plan, kept)),
        "base": {"class": type(owner).__name__, "widths": {insert.name: insert.width for insert in inserts.values()}},
    }
    folder = Path(folder)
    with written_whole(folder / WEIGHTS) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load_pretrained(
    model: nn.Module,
    source: str | Path,
    *,
    branches: Mapping[str, nn.Module | str] | None = None,
    revision: str | None = None,
) -> nn.Module:
    """Apply a saved plan to a fresh model and load what its inserts had learnt.

    Args:
        model: The base model, without inserts, with the weights it is to have.
        source: A folder that `save_pretrained` wrote, or a repository on the hub.
        branches: As in `apply`.
        revision: Of the repository on the hub.

    Returns:
        The same model. On any error it is left as it was.

    Raises:
        ValueError: The files are corrupt, of another format, or do not fit the model; the message says where.
    """
    if is_applied(model):
        raise ValueError(
            "load_pretrained: this model has inserts already. Call dtme.remove(model) first, or load a fresh model."
        )
    folder = _folder(source, revision)
    data = read_json(read_text(folder / CONFIG), FORMAT, str(folder / CONFIG))
    plan, widths = _config(data, folder)
    weights = _weights(folder)
    _check_base(model, plan, widths, folder)
    apply(model, plan, branches=branches)
    try:
        _load(model, weights, folder)
    except ValueError:
        remove(model)
        raise
    return model


def _load(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Fill the inserts of a model; checked first, so that they are filled whole or not at all."""
    inserts = [(name, module) for name, module in model.named_modules() if isinstance(module, Insert)]
    own = {
        f"{name}.{key}": tensor for name, module in inserts for key, tensor in module.state_dict(keep_vars=True).items()
    }
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if different:
        first = different[0]
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {CONFIG} beside it, or was saved from another model: {first!r} has shape "
            f"{found.get(first, 'missing')}, expected {expected.get(first, 'nothing')}."
        )
    broken = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(f"{folder / WEIGHTS}: {broken[0]!r} holds values that are not finite.")
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def _only(plan: Plan, kept: Sequence[str]) -> Plan:
    def own(placement: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
        return {block: tuple(task for task in tasks if task in kept) for block, tasks in placement.items()}

    return replace(plan, modulate=own(plan.modulate), expand=own(plan.expand), adapt=own(plan.adapt))


def _folder(source: str | Path, revision: str | None) -> Path:
    folder = Path(source)
    if folder.is_dir():
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder} holds no {missing[0]}: is it a folder that save_pretrained wrote?")
        return folder
    if isinstance(source, Path) or source.count("/") != 1 or source.startswith((".", "/")):
        raise ValueError(f"{source} is no folder here, nor the name of a repository, 'owner/name'.")
    return Path(snapshot_download(source, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))


def _config(data: Mapping[str, Any], folder: Path) -> tuple[Plan, dict[str, int]]:
    try:
        widths = {str(name): int(width) for name, width in data["base"]["widths"].items()}
        fields = dict(data["plan"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: 'plan' or 'base' is missing or malformed ({error}).") from error
    return Plan.from_dict(fields, str(folder / CONFIG)), widths


def _weights(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} is no readable safetensors file ({error}). It may be cut short."
        ) from error


def _check_base(model: nn.Module, plan: Plan, widths: Mapping[str, int], folder: Path) -> None:
    modules = dict(model.named_modules())
    for block in plan.blocks:
        if block not in modules:
            raise ValueError(f"{folder} was saved from another model: this one has no block {block!r}.")
        width = width_of(modules[block])
        if width != widths.get(block):
            raise ValueError(
                f"{folder} was saved from another model: tokens of {widths.get(block)} channels entered {block!r} there, "
                f"of {width} here."
            )
