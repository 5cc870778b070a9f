"""Find where the tasks of a transformer fight, in token space, and end the fight there.

Measure with `analyze`, decide with `ConflictReport.plan`, act with `apply`:

    report = dtme.analyze(model, task_losses, batches)
    plan = report.plan(fraction=0.5)
    dtme.apply(model, plan)
"""

from dtme.analysis import analyze
from dtme.apply import added_parameters, apply, remove
from dtme.checkpoint import load_pretrained, save_pretrained
from dtme.plan import Plan
from dtme.report import ConflictReport
from dtme.routing import tasks

__version__ = "0.1.0"
__all__ = [
    "ConflictReport",
    "Plan",
    "added_parameters",
    "analyze",
    "apply",
    "load_pretrained",
    "remove",
    "save_pretrained",
    "tasks",
]
