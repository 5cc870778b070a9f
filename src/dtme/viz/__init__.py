"""Pictures of what was measured and decided, and the one-file page that shows them together.

Every figure is a plain `matplotlib.figure.Figure`: no global state, no window, nothing to close.

Raises:
    ModuleNotFoundError: On import, where matplotlib or jinja2 are missing: `pip install "dtme[viz]"`.
"""

try:
    import jinja2 as jinja2
    import matplotlib as matplotlib
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error.name} is not installed, and figures need it: pip install "dtme[viz]".', name=error.name
    ) from error

from dtme.viz.conflict_maps import conflict_maps
from dtme.viz.cost_steps import cost_steps
from dtme.viz.page import write_page
from dtme.viz.plan_map import plan_map
from dtme.viz.sample_predictions import sample_predictions
from dtme.viz.samples import Samples
from dtme.viz.training_curves import training_curves

__all__ = ["Samples", "conflict_maps", "cost_steps", "plan_map", "sample_predictions", "training_curves", "write_page"]
