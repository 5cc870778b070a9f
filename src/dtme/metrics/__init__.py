"""How good a task is, summed over a whole data set and all processes, and what sharing a trunk gained or cost.

- `mean_iou`, `depth_rmse`, `mean_angular_error`, `max_f`, `optimal_dataset_f`, `pixel_error`: a measure each.
- `edges/`: boundaries, suppression, thinning and matching of edge maps.
- `f_measure`: F-measure from counts.
- `gain`: what sharing a trunk gained or cost, in per cent of single-task models.
- `_meter`, `_checks`: what all measures share, and what they refuse.

Every measure is a `torchmetrics.Metric` whose states are plain sums, so the value does not depend on how the data set
was cut into batches or processes; `higher_is_better` says which way it points and `protocol` how it counts: `"standard"`
soundly, `"invpt"` as the field's published tables do.
"""

from dtme.metrics.depth_rmse import DepthRMSE
from dtme.metrics.gain import delta_m, relative_gain
from dtme.metrics.max_f import MaxF
from dtme.metrics.mean_angular_error import MeanAngularError
from dtme.metrics.mean_iou import MeanIoU
from dtme.metrics.optimal_dataset_f import OptimalDatasetF
from dtme.metrics.pixel_error import RMSE, L1Error

__all__ = [
    "RMSE",
    "DepthRMSE",
    "L1Error",
    "MaxF",
    "MeanAngularError",
    "MeanIoU",
    "OptimalDatasetF",
    "delta_m",
    "relative_gain",
]
