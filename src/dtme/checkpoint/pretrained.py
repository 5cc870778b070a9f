"""Save what `apply` added, and put it into a fresh model: the plan as JSON, the parameters as safetensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtme._wrappers import bare_key, bare_keys, modules_by_name, unwrapped
from dtme.attach.apply import apply, find_applied, is_applied, remove
from dtme.checkpoint import files as checkpoint_files
from dtme.checkpoint.base_model import check_on_hand, describe, differences, gathered, named, origin, other_weights
from dtme.checkpoint.files import BASE, CONFIG, WEIGHTS, Checkpoint
from dtme.checkpoint.weights import check_finite, check_shapes, lay_apart
from dtme.distributed.wrappers import in_first_process
from dtme.inserts.insert import inserts_of
from dtme.plan.plan import Plan
from dtme.trunk.branches import branches_beyond


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
    shares = dict(_shares(owner, kept, gathered))
    check_on_hand({**shares, **(owner.state_dict() if base else {})})
    weights = lay_apart({name: share.cpu() for name, share in shares.items()})
    check_finite(
        weights,
        _learnt_shares(owner, kept),
        "save_pretrained",
        "The training has diverged: go back to an earlier state.",
    )
    plan, identity = _only(plan, kept), describe(owner, plan.blocks)
    own = _own_weights(owner) if base else {}
    checkpoint = Checkpoint(plan, kept, identity, weights, own, applied.branches)

    def write() -> None:
        written = checkpoint_files.write(folder, checkpoint)
        if push_to_hub is not None:
            from dtme.checkpoint import hub  # whose client takes a fifth of a second to load

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
        branches: As in `apply`; `None` takes those that `apply` was told when the inserts were saved.
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
    given, model = model, unwrapped(model)
    folder = _folder(source, revision, token)
    saved = checkpoint_files.read(folder)
    if branches is None and saved.branches is not None:
        branches = _branches_here(model, saved.branches, saved.tasks if tasks is None else tasks)
    plan = _plan_for(model, saved, tasks, branches, folder)
    _check_base(model, saved, folder)
    damaged = "It was damaged, or saved from a training that had diverged."
    check_finite(saved.base_weights, _bare(model, dict(model.named_parameters())), str(folder), damaged)
    apply(model, plan, branches=branches)
    try:
        shares = dict(_shares(model, plan.tasks))
        skipped = tuple(f".{task}" for task in saved.tasks if tasks is not None and task not in tasks)
        loaded = {name: t for name, t in saved.weights.items() if name in shares or not name.endswith(skipped or "\0")}
        check_shapes(loaded, shares, f"{folder / WEIGHTS} does not fit {CONFIG} beside it")
        check_finite(loaded, _learnt_shares(model, plan.tasks), str(folder), damaged)
        if not saved.base_weights:
            _warn_of_other_weights(model, saved.base, folder)
    except Exception:
        remove(model)
        raise
    own = _bare(model, model.state_dict(keep_vars=True))
    with torch.no_grad():
        for name, tensor in [*loaded.items(), *saved.base_weights.items()]:
            (shares[name] if name in shares else own[name]).copy_(tensor)
    return given


def _shares(
    model: nn.Module, tasks: Sequence[str], values: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> Iterator[tuple[str, Tensor]]:
    """The rows of every parameter and buffer of the inserts, one task at a time: views, where `values` gives views."""
    for name, insert in inserts_of(model).items():
        for own, tensor in insert.state_dict(keep_vars=True).items():
            if not isinstance(tensor, Tensor):  # what else a block keeps, in a copy of it
                continue
            rows, holders = values(tensor), insert.tasks_of(own)
            if own.startswith("copies."):  # of one task: copies.PLACE.PARAMETER
                own, rows = f"copies.{own.split('.', 2)[2]}", rows.unsqueeze(0)
            for row, task in enumerate(holders):
                if task in tasks:
                    yield f"{name}.{own}.{task}", rows[row]


def _learnt_shares(model: nn.Module, tasks: Sequence[str]) -> set[str]:
    """The names among `_shares` of what is learnt: buffers may hold what is not finite, a mask say."""
    return {
        f"{name}.{'copies.' + own.split('.', 2)[2] if own.startswith('copies.') else own}.{task}"
        for name, insert in inserts_of(model).items()
        for own, _ in insert.named_parameters()
        for task in insert.tasks_of(own)
        if task in tasks
    }


def _bare(model: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters or a state dict of a model by the names that they have without wrappers."""
    keys = bare_keys(model)
    return {bare_key(name, keys): tensor for name, tensor in tensors.items()}


def _own_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the base."""
    inserted = tuple(f"{name}." for name in inserts_of(model))
    state = _bare(model, model.state_dict())
    own = {name: tensor for name, tensor in state.items() if not name.startswith(inserted or "\0")}
    others = [name for name, kept in own.items() if not isinstance(kept, Tensor)]
    if others:
        warnings.warn(
            f"save_pretrained(base=True): {others[0]!r} and what else modules keep (get_extra_state) is not saved, "
            f"since files of tensors hold none ({len(others)} such).",
            UserWarning,
            stacklevel=3,
        )
    return lay_apart({name: gathered(kept).cpu() for name, kept in own.items() if isinstance(kept, Tensor)})


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


def _branches_here(model: nn.Module, saved: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
    """The saved branches of the wanted tasks, and of others that the model has."""
    names = modules_by_name(model)
    return {task: name for task, name in saved.items() if task in wanted or name in names}


def _folder(source: str | Path, revision: str | None, token: str | None) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or source.count("/") != 1 or source.startswith((".", "/", "~")) or folder.exists():
        raise ValueError(f"{source} is no folder here, nor the name of a repository, 'owner/name'.")
    from dtme.checkpoint import hub

    return hub.pull(source, (CONFIG, WEIGHTS, BASE), revision=revision, token=token)


def _check_base(model: nn.Module, saved: Checkpoint, folder: Path) -> None:
    different = differences(model, saved.base)
    if different:
        there, here = named(saved.base), named(origin(model))
        listed = "".join(f"\n  {difference}" for difference in different)
        raise ValueError(f"{folder} was saved beside another base, {there}, which this one, {here}, is not:{listed}")
    if saved.base_weights:
        state = _bare(model, model.state_dict())
        own = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
        check_shapes(saved.base_weights, own, f"{folder / BASE} does not fit this model")


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
