"""Pictures of what was measured and decided.

- `conflict_maps`: rates of conflict, blocks by pairs of tasks.
- `plan_map`: the plan over the trunk, a line that parts into a stream per task.
- `cost_steps`: conflict resolved against the cost of inference.
- `sheet`: a figure laid out in inches.
- `palette`: colours.

Every figure is a plain `matplotlib.figure.Figure`: no global state, no window, nothing to close.

Raises:
    ModuleNotFoundError: On import, where matplotlib is missing: `pip install "dtme[viz]"`.
"""

try:
    import matplotlib as matplotlib
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error.name} is not installed, and figures need it: pip install "dtme[viz]".', name=error.name
    ) from error

from dtme.viz.conflict_maps import conflict_maps
from dtme.viz.cost_steps import cost_steps
from dtme.viz.plan_map import plan_map

__all__ = ["conflict_maps", "cost_steps", "plan_map"]
