"""What is found goes to trackers through three methods, whatever keeps it: TensorBoard, W&B, or a class of one's own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from dtme.report.report import ConflictReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@runtime_checkable
class Tracker(Protocol):
    """Keeps numbers, figures and files of a run."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Keep numbers by name, of one step."""

    def figure(self, name: str, figure: Figure, step: int) -> None:
        """Keep a matplotlib figure."""

    def file(self, name: str, path: Path, step: int) -> None:
        """Keep a file."""


class TensorBoard:
    """A `SummaryWriter` of TensorBoard, which keeps no files: those of text it shows, of others it names the place.

    Args:
        writer: One, or the folder for a new one.
    """

    def __init__(self, writer: Any) -> None:
        if isinstance(writer, str | Path):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError('TensorBoard is missing: pip install "dtme[integrations]"') from error
            writer = SummaryWriter(str(writer))
        self.writer = writer

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One curve for each name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def figure(self, name: str, figure: Figure, step: int) -> None:
        """As an image."""
        self.writer.add_figure(name, figure, step, close=False)

    def file(self, name: str, path: Path, step: int) -> None:
        """As text, in the letters of a table."""
        text = path.read_text(encoding="utf-8") if path.suffix == ".txt" else str(path)
        self.writer.add_text(name, f"```\n{text}\n```", step)
        self.writer.flush()


class WandB:
    """A run of Weights & Biases; files become versions of an artifact.

    Args:
        run: From `wandb.init`.
        step_key: The name of the steps in this run, where others log to it as well and steps of W&B's own mean nothing:
            `"train/global_step"` with transformers, `"trainer/global_step"` with Lightning.
    """

    def __init__(self, run: Any, *, step_key: str | None = None) -> None:
        self.run, self.step_key = run, step_key

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One curve for each name."""
        self._log(dict(values), step)

    def figure(self, name: str, figure: Figure, step: int) -> None:
        """As an image."""
        import wandb

        import_module("matplotlib.pyplot")  # where W&B looks for what a figure is
        self._log({name: wandb.Image(figure)}, step)

    def file(self, name: str, path: Path, step: int) -> None:
        """As an artifact."""
        import wandb

        artifact = wandb.Artifact(re.sub(r"[^\w.-]+", "-", name), type="dtme", metadata={"step": step})
        artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def _log(self, values: dict[str, Any], step: int) -> None:
        if self.step_key is None:
            self.run.log(values, step=step)
        else:
            self.run.log({**values, self.step_key: step})


def tracker_of(native: Any, *, step_key: str | None = None) -> TensorBoard | WandB | None:
    """The tracker of a `SummaryWriter` or a W&B run; `None` for anything else."""
    if hasattr(native, "add_figure"):
        return TensorBoard(native)
    return WandB(native, step_key=step_key) if hasattr(native, "log_artifact") else None


class Wrapped:
    """A logger of some framework: numbers go through it, figures and files to what it wraps, if that keeps them.

    Args:
        log: `log(values, step)` of the framework.
        native: A `SummaryWriter`, a W&B run, or anything else.
        step_key: As of `WandB`.
    """

    def __init__(
        self, log: Callable[[dict[str, float], int], Any], native: Any, *, step_key: str | None = None
    ) -> None:
        self.log, self.native = log, tracker_of(native, step_key=step_key)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """As the framework logs them."""
        self.log(dict(values), step)

    def figure(self, name: str, figure: Figure, step: int) -> None:
        """Kept, or not."""
        if self.native is not None:
            self.native.figure(name, figure, step)

    def file(self, name: str, path: Path, step: int) -> None:
        """Kept, or not."""
        if self.native is not None:
            self.native.file(name, path, step)


def as_trackers(given: Iterable[Any]) -> list[Tracker]:
    """Trackers, or what those are made of: `SummaryWriter`s and W&B runs.

    Raises:
        ValueError: Something else is given.
        ModuleNotFoundError: matplotlib, which draws the map, is missing.
    """
    trackers = []
    for one in given:
        tracker = one if isinstance(one, Tracker) else tracker_of(one)
        if tracker is None:
            raise ValueError(
                f"trackers: {one!r} is none. Give dtme.integrations.TensorBoard, WandB, or a class of yours with the methods "
                "scalars, figure and file."
            )
        trackers.append(tracker)
    if trackers and find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            'trackers get a map, for which matplotlib is missing: pip install "dtme[integrations]"'
        )
    return trackers


def scalars_of(report: ConflictReport, losses: Mapping[str, float]) -> dict[str, float]:
    """What curves are drawn of: conflict per block and per pair, that above chance, gradient sizes, even weights, losses.

    Args:
        report: Of an analysis.
        losses: Each task's own loss on what was analysed.

    Example:
        >>> import torch
        >>> rate = torch.tensor([0.1, 0.4]).view(2, 1, 1) * (1 - torch.eye(2))
        >>> report = ConflictReport(("a", "b"), ("x.0", "x.1"), (8, 8), (3, 3), rate, rate, rate, rate, 9,
        ...                         (("", "shared"), ("shared", "")), (0.0, 0.0), 100.0, 0.95, range_chance=rate / 2)
        >>> {name: round(value, 2) for name, value in scalars_of(report, {"a": 1.5}).items() if "x.1" in name or "loss" in name}
        {'conflict/range/x.1': 0.4, 'conflict/range/x.1/a-b': 0.4, 'conflict_minus_chance/range/x.1': 0.2,
         'conflict/null/x.1': 0.4, 'conflict/null/x.1/a-b': 0.4, 'analysis/loss/a': 1.5}
    """
    values: dict[str, float] = {}
    pairs = list(itertools.combinations(range(len(report.tasks)), 2))
    spaces: tuple[tuple[str, Tensor, Tensor, Tensor | None], ...] = (
        ("range", report.range_score(), report.range_rate, report.range_chance_score()),
        ("null", report.null_score(), report.null_rate, report.null_chance_score()),
    )
    for space, score, rate, chance in spaces:
        for place, block in enumerate(report.blocks):
            values[f"conflict/{space}/{block}"] = float(score[place])
            for i, j in pairs:
                values[f"conflict/{space}/{block}/{report.tasks[i]}-{report.tasks[j]}"] = float(rate[place, i, j])
            if chance is not None and bool(chance[place].isfinite()):
                values[f"conflict_minus_chance/{space}/{block}"] = float(score[place] - chance[place])
    if report.gradient_size is not None:
        for place, task in enumerate(report.tasks):
            values[f"gradient_size/{task}"] = float(report.gradient_size[:, place].mean())
        if bool((report.gradient_size > 0).all()):
            values |= {f"even_weight/{task}": weight for task, weight in report.even_weights().items()}
    return values | {f"analysis/loss/{task}": loss for task, loss in losses.items()}


def tell(
    trackers: Iterable[Tracker], report: ConflictReport, losses: Mapping[str, float], step: int, files: Iterable[Path]
) -> None:
    """Give trackers the numbers of an analysis, its map, and its files."""
    values, files, trackers = scalars_of(report, losses), list(files), list(trackers)
    figure = report.plot() if trackers else None
    for tracker in trackers:
        tracker.scalars(values, step)
        if figure is not None:
            tracker.figure("conflict/map", figure, step)
        for path in files:
            tracker.file(f"dtme/{re.sub(r'-[0-9]+$', '', path.stem)}{path.suffix}", path, step)
