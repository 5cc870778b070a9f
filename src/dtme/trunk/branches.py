"""Find the branches: the modules where tasks leave the trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from dtme._wrappers import module_names, modules_by_name, named_modules


def leaving_modules(
    model: nn.Module, tasks: tuple[str, ...], branches: Mapping[str, nn.Module | str] | None = None
) -> list[tuple[str, nn.Module]]:
    """Every task with each module where it may leave the trunk.

    Args:
        model: A multi-task model.
        tasks: All its tasks.
        branches: Task to module or module name; by default the members of every `ModuleDict` whose keys are the tasks.

    Raises:
        ValueError: Nothing is found, a task is left out, or two tasks leave by one module.

    Example:
        >>> heads = nn.ModuleDict({"depth": nn.Linear(8, 1), "semseg": nn.Linear(8, 3)})
        >>> [task for task, _ in leaving_modules(heads, ("depth", "semseg"))]
        ['depth', 'semseg']
    """
    if branches is not None:
        return _each_its_own(_given(model, tasks, branches))
    beyond = branches_beyond(model, tasks)
    if beyond:
        raise ValueError(
            f"the model has a branch for {beyond[0]!r}, a task that the plan {tasks} does not know. Name it in the plan's "
            "tasks; a task needs no insert of its own. If it is no task, say where tasks leave the trunk: "
            "apply(model, plan, branches={task: module or its name})."
        )
    found = [(task, module[task]) for module in _dictionaries(model, tasks) for task in tasks]
    if not found:
        names = {name: tuple(m.keys()) for name, m in named_modules(model) if isinstance(m, nn.ModuleDict)}
        raise ValueError(
            f"branches: no ModuleDict of this model has the tasks {tasks} as keys (it has {names or 'no ModuleDict'}). Say where "
            "each task leaves the trunk: apply(model, plan, branches={task: module or its name})."
        )
    return _each_its_own(found)


def branch_names(model: nn.Module, branches: Mapping[str, nn.Module | str]) -> dict[str, str]:
    """The branches by name, so that they can be saved; those that are no modules of the model are left out."""
    names = module_names(model)
    named = {task: branch if isinstance(branch, str) else names.get(branch) for task, branch in branches.items()}
    return {task: name for task, name in named.items() if name is not None}


def branches_beyond(model: nn.Module, tasks: Sequence[str]) -> list[str]:
    """Keys that are no task, in the dictionaries of modules that hold all the tasks."""
    return [key for module in _dictionaries(model, tasks) for key in module if key not in tasks]


def _dictionaries(model: nn.Module, tasks: Sequence[str]) -> list[nn.ModuleDict]:
    """The outermost dictionaries of modules whose keys hold all the tasks."""
    found: dict[str, nn.ModuleDict] = {}
    for name, module in named_modules(model):
        inside = any(name.startswith(f"{outer}.") or outer == "" for outer in found)
        if isinstance(module, nn.ModuleDict) and set(tasks) <= set(module.keys()) and not inside:
            found[name] = module
    return list(found.values())


def _given(
    model: nn.Module, tasks: tuple[str, ...], branches: Mapping[str, nn.Module | str]
) -> list[tuple[str, nn.Module]]:
    if set(branches) != set(tasks):
        raise ValueError(f"branches names {tuple(branches)}, the plan has the tasks {tasks}: give one module per task.")
    named = modules_by_name(model)
    leaving: list[tuple[str, nn.Module]] = []
    for task in tasks:
        module = branches[task]
        if isinstance(module, str):
            if module not in named:
                raise ValueError(f"branches[{task!r}]={module!r}: this model has no module of that name.")
            module = named[module]
        leaving.append((task, module))
    return leaving


def _each_its_own(leaving: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    for place, (task, module) in enumerate(leaving):
        shared = [other for other, taken in leaving[:place] if taken is module and other != task]
        if shared:
            raise ValueError(
                f"branches: tasks {shared[0]!r} and {task!r} leave by the same module, which cannot take two streams. "
                "Give each task a module of its own, for instance nn.Identity() before the shared one."
            )
    return leaving
