"""What `python -m experiments bench` is told of a suite on disk, besides the suite's own choices: model, training, the run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from experiments.dense.backbones.recipe import BackboneRecipe, Decoder, Features
from experiments.dense.backbones.trunk import shape_of
from experiments.dense.disk_bench import DiskBench, Reading

ROWS = (
    "ST",
    "MT",
    "TM",
    "TE",
    "TM+TE",
    "TM+TE random",
    "TM+TE reversed",
    "TM+TE swapped",
    "MT, even gradients",
    "recommended",
)
"""Of the table, unless told otherwise."""

OF_SUITES: Mapping[str, Mapping[str, int]] = {"taskonomy": {"steps": 40_000, "batch": 8}}
"""Numbers of the training that are other than the paper's, which says none for Taskonomy: those of its author's code."""


@dataclass(frozen=True)
class ModelOptions:
    """The trunk and what stands behind it.

    Attributes:
        backbone: `vit_tiny`, `vit_small`, `vit_base`, `vit_large`, or a vision transformer by timm's name.
        weights: What the trunk begins with: `hub`, timm's augreg_in21k_ft_in1k or those of the tag in a name of timm's; a file,
            safetensors or a state dict of torch's; or `none`, random ones.
        decoder: `conv`, 3x3 convolution, batch norm, ReLU and a 1x1 map per task; `linear`, the 1x1 map alone; `invpt` and
            `taskprompter`, in which tasks meet.
        features: What `conv` and `linear` read: the tokens behind each quarter of the blocks, or the last ones alone.
        head_width: Channels inside a decoder, by default the trunk's.
        drop_path: Share of residual branches that training leaves out at the last block.
        width: Channels of a smaller trunk, for trying things.
        depth: Its blocks.
        attention_heads: Its heads.
    """

    backbone: str = "vit_tiny"
    weights: str = "hub"
    decoder: Decoder = "conv"
    features: Features = "quarters"
    head_width: int | None = None
    drop_path: float = 0.0
    width: int | None = None
    depth: int | None = None
    attention_heads: int | None = None


@dataclass(frozen=True)
class TrainingOptions:
    """The training of every row; what the paper says is the default.

    Attributes:
        steps: Of every row, by default 60,000; of Taskonomy 40,000.
        batch: Images a step, by default 6; of Taskonomy 8.
        accumulate: Parts of a batch that are gone through one after another, where memory is short.
        optimizer: `adam`, whose decay is in the gradient, or `adamw`.
        learning_rate: Peak of the trunk.
        head_rate: Of the decoders, as a multiple.
        insert_rate: Of modulators and task tokens, as a multiple.
        low_rank_rate: Of low-rank updates, as a multiple.
        weight_decay: Not on norms, biases and what a plan adds.
        warmup: Steps over which the rate rises, before it falls as a polynomial of power 0.9.
        expand_at: Step at which conflicts are measured and plans are applied, by default after one in a hundred.
        fraction: Share of the blocks for modulators, and for task tokens.
        analysis_images: That the analysis reads, twice.
        precision: Of passes: `float32`, or `bfloat16` by autocast.
        compiled: Compile the model for training.
    """

    steps: int | None = None
    batch: int | None = None
    accumulate: int = 1
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 2e-5
    head_rate: float = 1.0
    insert_rate: float = 10.0
    low_rank_rate: float = 3.0
    weight_decay: float = 1e-6
    warmup: int = 0
    expand_at: int | None = None
    fraction: float = 0.5
    analysis_images: int = 512
    precision: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False


@dataclass(frozen=True)
class RunOptions:
    """Which rows, where, and how images come to them.

    Attributes:
        data: Folder of the suite's data; never written to.
        methods: Rows of the table; ST and MT are added, as the others are held against them. A wrong name lists all.
        seeds: Of first weights, data order and augmentation; every row runs once per seed and is compared within seeds.
        held_out: What rows are measured on; `val`, where the data has one, is for choosing settings.
        device: Where models are; by default a GPU if there is one.
        workers: Processes that read images ahead; by default none beside a CPU, up to eight beside a GPU.
        kept_every: Steps after which an unfinished row is written down, to go on from there.
        dry_run: Check data and model, take some steps of every kind of row, and say what the table would take.
        dry_steps: How many steps that is.
        out: Folder of the results, by default runs/SUITE-BACKBONE. What is finished there is used again.
    """

    data: Path
    methods: tuple[str, ...] = ROWS
    seeds: tuple[int, ...] = (0,)
    held_out: Literal["test", "val"] = "test"
    device: str | None = None
    workers: int | None = None
    kept_every: int = 1000
    dry_run: bool = False
    dry_steps: int = 20
    out: Path | None = None

    def reading(self) -> Reading:
        """How images come to the model.

        Raises:
            ValueError: There is no such device.
        """
        name = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"device={name!r} is none: give cpu, cuda or cuda:N.") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={name!r}: torch finds no GPU here. Give cpu.")
        ahead = min(8, (os.cpu_count() or 1) - 1) if device.type == "cuda" else 0
        return Reading(name, ahead if self.workers is None else self.workers, self.kept_every)


def recipe_of(suite: str, size: tuple[int, int], model: ModelOptions, training: TrainingOptions) -> BackboneRecipe:
    """The recipe that options stand for.

    Args:
        suite: Name of the suite.
        size: Height and width of the images as a model is given them.
        model: Of the command line.
        training: Of the command line.

    Raises:
        ValueError: An option is out of range, or does not fit another.
    """
    shape, usual = shape_of(model.backbone), OF_SUITES.get(suite, {})
    width, depth, heads = model.width or shape.width, model.depth or shape.depth, model.attention_heads
    if (width, depth) != (shape.width, shape.depth) and model.weights != "none":
        raise ValueError(
            f"width={width}, depth={depth}: a trunk of another shape than {model.backbone}'s has no weights. Add --weights none."
        )
    steps, batch = training.steps or usual.get("steps", 60_000), training.batch or usual.get("batch", 6)
    for name, value in (("steps", steps), ("batch", batch), ("analysis_images", training.analysis_images)):
        if value < 1:
            raise ValueError(f"{name}={value}: give a number above 0.")
    if not 0 < training.fraction <= 1:
        raise ValueError(f"fraction={training.fraction}: give a share of the blocks above 0 and up to 1.")
    taken: dict[str, Any] = {
        name: getattr(training, name)
        for name in (
            "accumulate",
            "optimizer",
            "learning_rate",
            "head_rate",
            "insert_rate",
            "low_rank_rate",
            "weight_decay",
            "warmup",
            "fraction",
            "precision",
            "compiled",
        )
    }
    return BackboneRecipe(
        size=size,
        patch=shape.patch,
        width=width,
        depth=depth,
        attention_heads=heads or (shape.attention_heads if width == shape.width else max(1, width // 64)),
        mlp_width=shape.mlp_width,
        head_width=model.head_width or width,
        batch=batch,
        steps=steps,
        expand_at=steps // 100 if training.expand_at is None else training.expand_at,
        analysis_batches=-(-training.analysis_images // batch),
        backbone=model.backbone,
        weights=model.weights,
        decoder=model.decoder,
        features=model.features,
        drop_path=model.drop_path,
        **taken,
    )


def benches_of(suite: str, run: RunOptions, options: Any, recipe: BackboneRecipe, folder: Path) -> list[DiskBench]:
    """One benchmark run per seed."""
    reading = run.reading()
    return [
        DiskBench(
            suite, recipe, folder / f"seed-{seed}", run.data, seed, run.held_out, options=options, reading=reading
        )
        for seed in dict.fromkeys(run.seeds)
    ]
