"""How good a task is, summed over a whole data set and all processes, and what sharing a trunk gained or cost.

Every measure is a `torchmetrics.Metric` whose states are plain sums, so the value does not depend on how the data set
was cut into batches or processes; `higher_is_better` says which way it points. A distance-map regression needs none
of its own: `torchmetrics.MeanSquaredError(squared=False)` is the whole-set root mean square.
"""

from dtme.metrics.depth_rmse import DepthRMSE
from dtme.metrics.gain import delta_m, relative_gain
from dtme.metrics.max_f import MaxF
from dtme.metrics.mean_angular_error import MeanAngularError
from dtme.metrics.mean_iou import MeanIoU
from dtme.metrics.optimal_dataset_f import OptimalDatasetF

__all__ = ["DepthRMSE", "MaxF", "MeanAngularError", "MeanIoU", "OptimalDatasetF", "delta_m", "relative_gain"]
