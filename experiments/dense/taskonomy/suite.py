"""The suite `taskonomy`: eleven tasks of indoor scenes at 256 x 256."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from experiments.dense.datasets.dataset import Transform
from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.facts import DenseSuite, DenseTask, chosen_tasks, suite_of
from experiments.dense.taskonomy.domains import DOMAINS
from experiments.dense.taskonomy.losses import cosine_loss, l1_loss, squared_loss, width_cosine_loss
from experiments.dense.taskonomy.reader import TaskonomyReader, open_taskonomy
from experiments.dense.taskonomy.selection import Selection, check_known, in_file_order, select
from experiments.dense.taskonomy.splits import Size, buildings_of
from experiments.dense.taskonomy.transform import EncodeThenResize, ResizeThenEncode, channels_of
from experiments.dense.transforms.colour import HALF, IMAGENET

TASKS = tuple(DOMAINS)


@dataclass(frozen=True)
class TaskonomyChoices:
    """What the paper leaves open, or the field does in more than one way.

    Attributes:
        tasks: Some of the eleven; by default all.
        split: Which of the official lists of buildings.
        split_file: Another list of the same form.
        protocol: `standard`: targets are unknown in holes of the scan, region numbers stay whole, normals mirror rightly;
            `sel`: as in the code of the paper's author, without holes, region numbers averaged, normals compared along rows,
            three channels of reshading, the first tenth of the test images, trained on `train+val`.
        train_on: Buildings to train on; `val` is for choosing settings.
        normals_loss: `cosine` between vectors, or `l1` of their components; `sel` has its own.
        curvature: What principal curvature is measured by: `rmse`, as the paper's table says; `mse`, as its author's code does.
        meters: Means over all known values (`standard`), or means over batches of each batch's mean, as that code has (`invpt`).
        normalisation: Of the picture: `half`, from -1 to 1, as in the author's code and as augreg weights expect; or `imagenet`.
        size: Height and width that a model is given.
        missing: A picture that some task does not know is left out (`drop`), or labelled in part (`leave_out`).
        absent: A building of the split that is not there is an error, or left out (`leave_out`).
        unreadable: A file that cannot be decoded is an error, or is skipped (`skip`) and counted.
    """

    tasks: tuple[str, ...] | None = None
    split: Size = "tiny"
    split_file: Path | None = None
    protocol: Literal["standard", "sel"] = "standard"
    train_on: Literal["train", "train+val"] = "train"
    normals_loss: Literal["cosine", "l1"] = "cosine"
    curvature: Literal["rmse", "mse"] = "rmse"
    meters: Literal["standard", "invpt"] = "standard"
    normalisation: Literal["half", "imagenet"] = "half"
    size: tuple[int, int] = (256, 256)
    missing: Literal["drop", "leave_out"] = "drop"
    absent: Literal["error", "leave_out"] = "error"
    unreadable: Literal["error", "skip"] = "error"


def suite(
    data: Path,
    choices: TaskonomyChoices | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DenseSuite:
    """The suite, of a folder in any of the three forms of a download.

    Args:
        data: The folder; never written to.
        choices: What the paper leaves open.
        seed: Of the augmentation.
        progress: Told how many folders are listed, and of how many.

    Raises:
        DataError: It is not there, is something else, or lacks buildings or domains.
        ValueError: A choice does not fit it.
    """
    choices = choices or TaskonomyChoices()
    return made_from(opened(data, choices, progress), choices, seed=seed)


def opened(
    data: Path, choices: TaskonomyChoices, progress: Callable[[int, int], None] | None = None
) -> TaskonomyReader:
    """The reader of the data, all of it listed."""
    return open_taskonomy(data, progress)


def made_from(reader: TaskonomyReader, choices: TaskonomyChoices, *, seed: int = 0) -> DenseSuite:
    """The suite of what a reader reads."""
    sel = choices.protocol == "sel"
    names = chosen_tasks(choices.tasks, TASKS, reader)
    if choices.missing == "leave_out" and sel:
        raise ValueError("missing='leave_out' with protocol='sel', which knows nothing unknown: choose 'standard'.")
    splits, said = _splits(reader, names, choices)
    check_known(reader, splits["train"], names)
    normalisation = HALF if choices.normalisation == "half" else IMAGENET
    transforms: tuple[Transform, Transform] = (
        (ResizeThenEncode(choices.size, True, normalisation), ResizeThenEncode(choices.size, False, normalisation))
        if sel
        else (EncodeThenResize(choices.size, True, normalisation), EncodeThenResize(choices.size, False, normalisation))
    )
    return suite_of(
        "taskonomy",
        reader.with_splits(splits, masked=not sel),
        tuple(_task(name, choices) for name in names),
        transforms,
        choices.size,
        choices,
        seed=seed,
        said=said,
    )


def listed_buildings(reader: TaskonomyReader, said: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The buildings of the list that a suite said it has chosen."""
    given = said["split_file"]
    return buildings_of(reader.root, cast(Size, said["split"]), None if given == "None" else Path(given))


def _splits(
    reader: TaskonomyReader, tasks: tuple[str, ...], choices: TaskonomyChoices
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Names of images by split, and for each split what was chosen and left out."""
    needed = ("train", "val", "test") if _trains_on_val(choices) else ("train", "test")
    chosen = {
        split: _chosen(reader, split, own, tasks, choices, needed=split in needed)
        for split, own in buildings_of(reader.root, choices.split, choices.split_file).items()
    }
    splits = {split: own.names for split, own in chosen.items() if isinstance(own, Selection)}
    said = {split: str(own) for split, own in chosen.items()}
    if _trains_on_val(choices):
        splits["train"] += splits.pop("val")
        said["train"] += f"; and of val: {said.pop('val')}"
    if choices.protocol == "sel":
        splits = {split: tuple(in_file_order(own)) for split, own in splits.items()}
        splits["test"] = splits["test"][: max(1, len(splits["test"]) // 10)]
        said["test"] += f"; of these the first tenth, {len(splits['test'])}"
    return splits, said


def _chosen(
    reader: TaskonomyReader,
    split: str,
    buildings: tuple[str, ...],
    tasks: tuple[str, ...],
    choices: TaskonomyChoices,
    *,
    needed: bool,
) -> Selection | str:
    """The images of a split; of one that is not needed and cannot be had, why."""
    try:
        return select(reader, split, buildings, tasks, partial=choices.missing == "leave_out", absent=choices.absent)
    except DataError as error:
        if needed:
            raise
        return f"none ({error})"


def _trains_on_val(choices: TaskonomyChoices) -> bool:
    return choices.protocol == "sel" or choices.train_on == "train+val"


def _task(name: str, choices: TaskonomyChoices) -> DenseTask:
    domain, sel = DOMAINS[name], choices.protocol == "sel"
    loss, meter, metric_name, options = l1_loss, "L1Error", "L1", {"protocol": choices.meters}
    if name == "normal" and (sel or choices.normals_loss == "cosine"):
        loss = width_cosine_loss if sel else cosine_loss
    elif name == "principal_curvature":
        loss, meter, metric_name = squared_loss, "RMSE", choices.curvature.upper()
        options = {**options, "root": choices.curvature == "rmse"}
    shown = "normals" if name == "normal" else "signed"
    return DenseTask(
        name, channels_of(domain, choices.protocol), "values", loss, meter, metric_name, shown, meter_options=options
    )
