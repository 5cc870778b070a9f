"""A seed of a suite whose images lie on disk: the same engine, with data that is read, and a trunk that comes with weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from experiments.dense.backbones.recipe import BackboneRecipe
from experiments.dense.datasets.facts import DenseSuite, DenseTask
from experiments.dense.datasets.reader import Reader
from experiments.dense.disk_split import DiskSplit
from experiments.dense.experiment import Bench
from experiments.dense.on_disk import SUITES
from experiments.dense.suite import Suite, Task
from experiments.runner.jobs import Report
from experiments.runner.processes import place

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True)
class Reading:
    """How images come to the model; nothing that results depend on.

    Attributes:
        device: Where the model is: `cpu`, `cuda`, `cuda:1`.
        workers: Processes that read ahead, of each split.
        kept_every: Steps after which an unfinished run is written down.
    """

    device: str = "cpu"
    workers: int = 0
    kept_every: int = 1000


@dataclass(frozen=True)
class DiskBench(Bench):
    """One seed of a suite of images on disk.

    Attributes:
        options: What the paper leaves open of the suite: of its class of choices.
        reading: How images come to the model.
    """

    options: Any = None
    reading: Reading = field(default_factory=Reading)

    @property
    def opened(self) -> DenseSuite:
        """The suite as it lies on disk, found once in each process; a command has checked it before."""
        assert self.data is not None
        return _opened(self.suite, self.data, self.options, self.seed)

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each task's loss."""
        return {task.name: task.weight for task in self.opened.tasks}

    @property
    def choices(self) -> dict[str, str]:
        """What was chosen of the suite, then of model and training."""
        return {**self.opened.choices, **said(cast(BackboneRecipe, self.recipe))}

    @property
    def kept_every(self) -> int:
        """As of `Reading`."""
        return self.reading.kept_every

    def load(self, report: Report | None = None) -> Suite:
        """The suite; `pretrain` is its training split, as nothing is trained before."""
        suite = _loaded(self.suite, cast(Path, self.data), self.options, self.seed, self.reading)
        if self.held_out == "test":
            return suite
        if suite.val is None:
            raise ValueError(
                f"held_out='val': {self.suite} has no such split in this copy. Measure on 'test', as published tables do."
            )
        return Suite(suite.name, suite.tasks, suite.pretrain, suite.train, suite.val, suite.val)

    def made_with(self) -> dict[str, Any]:
        """Versions and hardware, and among how many processes batches were shared."""
        made = super().made_with()
        return {**made, "made_with": {**made["made_with"], "processes": place()[1]}}

    def settings(self) -> dict[str, Any]:
        """What a finished row must have been made with to be used again; where images lie is not part of it."""
        from experiments.dense.backbones.weights import identity_of

        recipe = cast(BackboneRecipe, self.recipe)
        suite, own = self.opened, super().settings()
        names = [*suite.train.names, "", *suite.test.names]
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        return {
            **own,
            "data": [len(suite.train), len(suite.test), digest],
            "recipe": {**own["recipe"], "weights": identity_of(recipe.weights)},
            "choices": dict(suite.choices),
        }


_SAID = (
    "decoder",
    "features",
    "head_width",
    "drop_path",
    "batch",
    "accumulate",
    "steps",
    "optimizer",
    "learning_rate",
    "head_rate",
    "insert_rate",
    "low_rank_rate",
    "weight_decay",
    "warmup",
    "expand_at",
    "analysis_batches",
    "fraction",
    "precision",
    "compiled",
)
"""What of a recipe the paper does not say, or says and may be chosen otherwise."""


def said(recipe: BackboneRecipe) -> dict[str, str]:
    """Model and training in words.

    >>> said(BackboneRecipe(size=(448, 576), weights="none"))["trunk"]
    'vit_tiny (192 channels, 12 blocks, patches of 16), random weights'
    """
    weights = {"none": "random weights", "hub": "timm's weights"}.get(recipe.weights, Path(recipe.weights).name)
    trunk = f"{recipe.backbone} ({recipe.width} channels, {recipe.depth} blocks, patches of {recipe.patch}), {weights}"
    return {"trunk": trunk, **{name: str(getattr(recipe, name)) for name in _SAID}}


def as_task(task: DenseTask) -> Task:
    """A task of data on disk as the engine has tasks."""
    metric = partial(_meter, task)
    return Task(
        task.name, task.channels, task.loss, metric, task.metric_name, task.shown, task.weight, task.measured_on
    )


def _meter(task: DenseTask) -> Metric:
    import dtme.metrics

    return getattr(dtme.metrics, task.meter)(**task.meter_options)


def open_suite(name: str, data: Path, options: Any, seed: int, progress: Report | None = None) -> DenseSuite:
    """A suite as it lies on disk, not checked; listing its files is done once in each process.

    Raises:
        DataError: As of `on_disk.load_suite`.
        ValueError: A choice does not fit it.
    """
    return SUITES[name].made_from(_reader(name, data, options, progress), options, seed=seed)


_READERS: dict[tuple[str, Path, Any], Reader] = {}


def _reader(name: str, data: Path, options: Any, progress: Report | None) -> Reader:
    key = name, data, options
    if key not in _READERS:
        _READERS[key] = SUITES[name].opened(data, options, progress)
    return _READERS[key]


@lru_cache(maxsize=4)
def _opened(name: str, data: Path, options: Any, seed: int) -> DenseSuite:
    return open_suite(name, data, options, seed)


@lru_cache(maxsize=2)
def _loaded(name: str, data: Path, options: Any, seed: int, reading: Reading) -> Suite:
    suite, device = _opened(name, data, options, seed), torch.device(reading.device)
    channels = {task.name: task.channels for task in suite.tasks}
    train, test, val = (
        None if split is None else DiskSplit(split, suite.collate, device, channels, workers=reading.workers)
        for split in (suite.train, suite.test, suite.val)
    )
    assert train is not None
    assert test is not None
    return Suite(suite.name, tuple(map(as_task, suite.tasks)), train, train, test, val)
