"""The tasks of NYUD-v2 and PASCAL-Context, each with the loss and the weight that were chosen."""

from __future__ import annotations

from functools import partial

from experiments.dense.datasets.facts import DenseTask
from experiments.dense.invpt.choices import Choices
from experiments.dense.invpt.losses import (
    class_loss,
    depth_loss,
    edge_loss,
    normals_loss,
    saliency_loss,
    weight_of,
)


def task_of(name: str, choices: Choices, classes: tuple[str, ...] = (), *, tolerance: float) -> DenseTask:
    """One of the tasks of NYUD-v2 and PASCAL-Context.

    Args:
        name: Of the task.
        choices: Of its loss.
        classes: Names of the classes, of `semseg` and `parts`.
        tolerance: Of the place of an edge, as a fraction of the diagonal, within which it counts as found.
    """
    weight, meter = weight_of(name, choices.loss_weights), {"protocol": choices.meters}
    if name in ("semseg", "parts"):
        known = {"num_classes": len(classes), **meter}
        return DenseTask(name, len(classes), "classes", class_loss, "MeanIoU", "mIoU", "labels", weight, classes, known)
    if name == "depth":
        return DenseTask(name, 1, "depth", depth_loss, "DepthRMSE", "RMSE (m)", "depth", weight, meter_options=meter)
    if name == "normals":
        loss = partial(normals_loss, over=choices.normals_over)
        return DenseTask(
            name, 3, "normals", loss, "MeanAngularError", "mErr (°)", "normals", weight, meter_options=meter
        )
    if name == "saliency":
        return DenseTask(name, 1, "classes", saliency_loss, "MaxF", "maxF", "edges", weight, meter_options=meter)
    loss = partial(edge_loss, weight=choices.edge_weight)
    matched = {"tolerance": tolerance, "protocol": choices.edge_protocol}
    return DenseTask(name, 1, "classes", loss, "OptimalDatasetF", "odsF", "edges", weight, meter_options=matched)


def tiled(size: tuple[int, int], patch: int = 16) -> tuple[int, int]:
    """The least size that holds another and that patches tile.

    >>> tiled((480, 640)), tiled((425, 560))
    ((480, 640), (432, 560))
    """
    return -(-size[0] // patch) * patch, -(-size[1] // patch) * patch
