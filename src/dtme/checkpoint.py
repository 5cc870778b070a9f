"""Save what `apply` added, and put it into a fresh model: the plan as JSON, the parameters as safetensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtme import checkpoint_files, hub
from dtme.apply import apply, find_applied, is_applied, remove
from dtme.base import describe, differences, gathered, is_inserted, named, origin, other_weights
from dtme.branches import branches_beyond
from dtme.checkpoint_files import BASE, CONFIG, WEIGHTS, Checkpoint
from dtme.insert import Insert
from dtme.parallel import in_first_process
from dtme.plan import Plan


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    base: bool = False,
    push_to_hub: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> None:
    """Write the plan of a model and what its inserts have learnt, and with `base=True` the model's own weights as well.

    Two files: `config.json` (format version, plan with the order of the tasks, identity of the base) and
    `model.safetensors`, where `BLOCK.dtme.PARAMETER.TASK` is a task's share of a parameter. The trunk is trained along with
    its inserts, which mean little without it: keep the model's `state_dict`, or save it here with `base=True`, as a third
    file, `base.safetensors`.

    Parameters that are sharded (FSDP2) are gathered, so every process has to call; the first one writes, and the others
    wait until it has.

    Args:
        model: A model `apply` was called on.
        folder: Made if it is not there; the files of an earlier save are replaced once the new ones are complete.
        tasks: Only what belongs to these tasks; the others stay in the plan, without inserts.
        base: Save the parameters and buffers of the model itself, too.
        push_to_hub: A repository on the hub, `"owner/name"`, that gets the files and a card. It is made if it is not there.
        private: Whether a repository that is made is private; `None` leaves it to the settings of its owner.
        token: For the hub, if not the one of `hf auth login`.

    Raises:
        ValueError: No plan has been applied, a task is unknown, a value is not finite, the folder is a file, or the hub
            refuses.
        ConnectionError: The hub is not reached; the folder has been written.
    """
    owner, applied = find_applied(model)
    plan = applied.plan
    kept = plan.tasks if tasks is None else tuple(task for task in plan.tasks if task in tasks)
    if not kept or set(tasks or ()) - set(kept):
        raise ValueError(f"save_pretrained(tasks={tasks!r}): give some of {plan.tasks}.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"save_pretrained(folder={str(folder)!r}): this is a file. Name a folder; it may be a new one."
        )
    weights = _apart({name: share.cpu() for name, share in _shares(owner, kept, gathered)})
    _check_finite(weights, "save_pretrained", "The training has diverged: go back to an earlier state.")
    plan, identity = _only(plan, kept), describe(owner, plan.blocks)
    checkpoint = Checkpoint(plan, kept, identity, weights, _own_weights(owner) if base else {})

    def write() -> None:
        written = checkpoint_files.write(folder, checkpoint)
        if push_to_hub is not None:
            hub.write_card(folder, plan, kept, named(identity), push_to_hub)
            hub.push(folder, push_to_hub, (*written, hub.CARD), private=private, token=token)

    in_first_process(owner, write)


def load_pretrained(
    model: nn.Module,
    source: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    branches: Mapping[str, nn.Module | str] | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> nn.Module:
    """Apply a saved plan to a fresh model and load what its inserts had learnt.

    The structure of the model's trunk has to be that of the base the inserts were saved beside. Where its weights are
    others, and the checkpoint brings none, a warning says so: load the trained base first.

    Args:
        model: The base model, without inserts, with the weights it is to have.
        source: A folder that `save_pretrained` wrote, or a repository on the hub, `"owner/name"`.
        tasks: Only the inserts of these tasks; by default of all that were saved. Other tasks of the plan run without
            inserts, and need not have a branch in this model.
        branches: As in `apply`.
        revision: Of the repository on the hub: a branch, a tag or a commit.
        token: For the hub, if not the one of `hf auth login`.

    Returns:
        The same model. On any error it is left as it was.

    Raises:
        ValueError: The files are corrupt, of another format, or do not fit the model; or there is no such repository or
            revision.
        ConnectionError: The hub is not reached.
    """
    if is_applied(model):
        raise ValueError(
            "load_pretrained: this model has inserts already. Call dtme.remove(model) first, or load a fresh model."
        )
    folder = _folder(source, revision, token)
    saved = checkpoint_files.read(folder)
    plan = _plan_for(model, saved, tasks, branches, folder)
    _check_base(model, saved, folder)
    values = {**saved.weights, **saved.base_weights}
    _check_finite(values, str(folder), "It was damaged, or saved from a training that had diverged.")
    apply(model, plan, branches=branches)
    try:
        shares = dict(_shares(model, plan.tasks))
        skipped = tuple(f".{task}" for task in saved.tasks if tasks is not None and task not in tasks)
        loaded = {name: t for name, t in saved.weights.items() if name in shares or not name.endswith(skipped or "\0")}
        _check_shapes(loaded, shares, f"{folder / WEIGHTS} does not fit {CONFIG} beside it")
        if not saved.base_weights:
            _warn_of_other_weights(model, saved.base, folder)
    except Exception:
        remove(model)
        raise
    own = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in [*loaded.items(), *saved.base_weights.items()]:
            (shares[name] if name in shares else own[name]).copy_(tensor)
    return model


def _shares(
    model: nn.Module, tasks: Sequence[str], values: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> Iterator[tuple[str, Tensor]]:
    """The rows of every parameter and buffer of the inserts, one task at a time: views, where `values` gives views."""
    for name, insert in model.named_modules():
        if isinstance(insert, Insert):
            for own, tensor in insert.state_dict(keep_vars=True).items():
                if not isinstance(tensor, Tensor):  # what else a block keeps, in a copy of it
                    continue
                rows, holders = values(tensor), insert.tasks_of(own)
                if own.startswith("copies."):  # of one task: copies.PLACE.PARAMETER
                    own, rows = f"copies.{own.split('.', 2)[2]}", rows.unsqueeze(0)
                for row, task in enumerate(holders):
                    if task in tasks:
                        yield f"{name}.{own}.{task}", rows[row]


def _own_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the base."""
    return _apart({n: gathered(t).cpu() for n, t in model.state_dict().items() if not is_inserted(n)})


def _apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none of which shares memory with another, as safetensors wants it."""
    seen: set[int] = set()
    for name, tensor in weights.items():
        memory = tensor.untyped_storage().data_ptr()
        weights[name] = tensor.clone().contiguous() if memory in seen else tensor.contiguous()
        seen.add(memory)
    return weights


def _only(plan: Plan, kept: Sequence[str]) -> Plan:
    def own(placement: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
        return {block: tuple(task for task in tasks if task in kept) for block, tasks in placement.items()}

    placed = {name: own(getattr(plan, name)) for name in ("modulate", "expand", "adapt", "copies")}
    return replace(plan, **placed)


def _plan_for(
    model: nn.Module,
    saved: Checkpoint,
    tasks: Sequence[str] | None,
    branches: Mapping[str, nn.Module | str] | None,
    folder: Path,
) -> Plan:
    """The saved plan for the wanted tasks, without those that have no insert and no branch in the model."""
    wanted = saved.tasks if tasks is None else tuple(tasks)
    unknown = [task for task in wanted if task not in saved.tasks]
    if unknown or not wanted:
        raise ValueError(f"load_pretrained(tasks={tasks!r}): {folder} holds the inserts of {saved.tasks}.")
    present = {*wanted, *(branches_beyond(model, wanted) if branches is None else branches)}
    plan = _only(saved.plan, wanted)
    return replace(plan, tasks=tuple(task for task in plan.tasks if task in present))


def _folder(source: str | Path, revision: str | None, token: str | None) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or source.count("/") != 1 or source.startswith((".", "/", "~")) or folder.exists():
        raise ValueError(f"{source} is no folder here, nor the name of a repository, 'owner/name'.")
    return hub.pull(source, (CONFIG, WEIGHTS, BASE), revision=revision, token=token)


def _check_base(model: nn.Module, saved: Checkpoint, folder: Path) -> None:
    different = differences(model, saved.base)
    if different:
        there, here = named(saved.base), named(origin(model))
        listed = "".join(f"\n  {difference}" for difference in different)
        raise ValueError(f"{folder} was saved beside another base, {there}, which this one, {here}, is not:{listed}")
    if saved.base_weights:
        _check_shapes(saved.base_weights, model.state_dict(), f"{folder / BASE} does not fit this model")


def _warn_of_other_weights(model: nn.Module, base: Mapping[str, Any], folder: Path) -> None:
    changed = other_weights(model, base)
    if changed:
        some = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
        warnings.warn(
            f"{folder}: these inserts were trained together with a base, {named(base)}, whose weights this model, "
            f"{named(origin(model))}, does not have. They differ in {some} (of {len(base['weights'])} places). Load the "
            "trained base first, model.load_state_dict(...), or save it with its inserts: save_pretrained(..., base=True).",
            UserWarning,
            stacklevel=3,
        )


def _check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    one = {name: tuple(tensor.shape) for name, tensor in found.items()}
    other = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    different = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    if different:
        listed = "; ".join(
            f"{name!r} has shape {one.get(name, 'missing')}, expected {other.get(name, 'nothing')}"
            for name in different[:3]
        )
        raise ValueError(f"{what}: {listed}" + (f"; and {len(different) - 3} more." if len(different) > 3 else "."))


def _check_finite(tensors: Mapping[str, Tensor], what: str, remedy: str) -> None:
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(f"{what}: {broken[0]!r} holds values that are not finite ({len(broken)} such). {remedy}")
