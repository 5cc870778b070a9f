"""Reading data sets of images on disk: files, layouts, samples, batches."""

from __future__ import annotations

from experiments.dense.datasets.collate import Batch, Collate, labelled_tasks
from experiments.dense.datasets.dataset import DenseDataset, Sample
from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.facts import DenseSuite, DenseTask
from experiments.dense.datasets.loader import EpochBatches, InOrder, load

__all__ = [
    "Batch",
    "Collate",
    "DataError",
    "DenseDataset",
    "DenseSuite",
    "DenseTask",
    "EpochBatches",
    "InOrder",
    "Sample",
    "labelled_tasks",
    "load",
]
