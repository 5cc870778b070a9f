"""Find where the tasks of a transformer fight, in token space, and end the fight there.

Measure with `analyze`, decide with `ConflictReport.plan`, act with `apply`; or from a shell, with the command in `cli`:

    report = dtme.analyze(model, task_losses, batches)
    plan = report.plan(fraction=0.5)
    dtme.apply(model, plan)

The stages, each a package, those below used by those above:

- `measure`: where tasks fight: token spaces, conflicts, rates, and when to stop.
- `checkpoint`: what a plan added, saved and loaded.
- `attach`: inserts put into a model, run, and taken out again. `report`: what an analysis found.
- `inserts`: modulators, task tokens, low-rank updates, copies. `viz`: pictures.
- `trunk`: a stranger's transformer, read. `plan`: what to insert where, and what it costs.
- `streams`: one tensor per stream behind the face of one.
- `distributed`: several processes. `integrations`: the training loops that people have. `metrics`: how good a task is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dtme._moved import explain_gone_modules

if TYPE_CHECKING:
    from dtme.attach.apply import added_parameters, apply, plan_of, remove
    from dtme.attach.cost import cost
    from dtme.attach.optimizer import expand, parameter_groups
    from dtme.checkpoint.plan_file import resume, save_plan
    from dtme.checkpoint.pretrained import load_pretrained, save_pretrained
    from dtme.checkpoint.state_dict import carry_plan
    from dtme.measure.analyze import analyze
    from dtme.plan.plan import Plan
    from dtme.report.report import ConflictReport
    from dtme.streams.routing import tasks
    from dtme.trunk.blocks import find_blocks

__version__ = "0.1.0"
__all__ = [
    "ConflictReport",
    "Plan",
    "added_parameters",
    "analyze",
    "apply",
    "carry_plan",
    "cost",
    "expand",
    "find_blocks",
    "load_pretrained",
    "parameter_groups",
    "plan_of",
    "remove",
    "resume",
    "save_plan",
    "save_pretrained",
    "tasks",
]
_HOMES = {
    "attach.apply": ("added_parameters", "apply", "plan_of", "remove"),
    "attach.cost": ("cost",),
    "attach.optimizer": ("expand", "parameter_groups"),
    "checkpoint.plan_file": ("resume", "save_plan"),
    "checkpoint.pretrained": ("load_pretrained", "save_pretrained"),
    "checkpoint.state_dict": ("carry_plan",),
    "measure.analyze": ("analyze",),
    "plan.plan": ("Plan",),
    "report.report": ("ConflictReport",),
    "streams.routing": ("tasks",),
    "trunk.blocks": ("find_blocks",),
}
_HOME = {name: f"dtme.{home}" for home, names in _HOMES.items() for name in names}
"""Where each public name lives: loaded when first asked for, so that `dtme --help` need not load torch."""
explain_gone_modules()


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module 'dtme' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    """The public names: packages and modules, which are found by import, do not stand between them."""
    return sorted([*__all__, "__version__"])
