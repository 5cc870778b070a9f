"""A few images with the truth and what each method predicts, as they are kept for the pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dtme._files import parse_json, written_whole
from dtme._shapes import Shaped

Kind = Literal["labels", "depth", "normals", "edges", "signed"]
FORMAT = "dtme.samples"


@dataclass(frozen=True, eq=False)
class Samples:
    """Test images, the truth about them, and predictions, all ready to be shown.

    Attributes:
        images: RGB, 8 bits a channel.
        targets: Per task, a tensor whose first dimension is the image.
        predictions: Per method and task, in the form of the target: class labels rather than logits, probabilities
            between 0 and 1 rather than logits of edges.
        kinds: Per task, in the order of the columns, how it is shown. `"labels"` (n, h, w): classes, 255 unknown;
            `"depth"` (n, h, w): unknown where not finite or not positive; `"normals"` (n, 3, h, w): unknown where zero;
            `"edges"` (n, h, w): probabilities or a mask, 255 unknown; `"signed"` (n, h, w): any sign, as distance maps.
            All but normals may have a dimension of one channel. Heights and widths may differ from the image's.

    Raises:
        ValueError: A field does not fit the others; the message names it.

    Example:
        >>> truth = torch.tensor([[[0, 1], [2, 255]]], dtype=torch.uint8)
        >>> images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
        >>> samples = Samples(images, {"semseg": truth}, {"MT": {"semseg": truth}}, {"semseg": "labels"})
        >>> list(samples.predictions), len(samples)
        (['MT'], 1)
    """

    images: Shaped[Tensor, "n 3 h w"]
    targets: Mapping[str, Tensor]
    predictions: Mapping[str, Mapping[str, Tensor]]
    kinds: Mapping[str, Kind]

    def __post_init__(self) -> None:
        images = self.images
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or not len(images):
            raise ValueError(
                f"images has shape {tuple(images.shape)} and type {images.dtype}: give (n, 3, h, w) in uint8."
            )
        for task, kind in self.kinds.items():
            if kind not in get_args(Kind):
                raise ValueError(f"kinds[{task!r}]={kind!r}: choose one of {get_args(Kind)}.")
        self._check("targets", self.targets)
        for method, of_task in self.predictions.items():
            self._check(f"predictions[{method!r}]", of_task)

    def __len__(self) -> int:
        return len(self.images)

    def _check(self, name: str, of_task: Mapping[str, Tensor]) -> None:
        if set(of_task) != set(self.kinds):
            raise ValueError(f"{name} has the tasks {sorted(of_task)}, kinds has {sorted(self.kinds)}: give the same.")
        for task, tensor in of_task.items():
            kind, where = self.kinds[task], f"{name}[{task!r}]"
            channels = 3 if kind == "normals" else 1
            grid = (tensor.ndim == 4 and tensor.shape[1] == channels) or (tensor.ndim == 3 and channels == 1)
            if not grid or len(tensor) != len(self.images):
                wanted = f"({len(self.images)}, {channels}, h, w)" + (
                    f" or ({len(self.images)}, h, w)" if channels == 1 else ""
                )
                hint = "; take the argmax of logits" if kind == "labels" else ""
                raise ValueError(f"{where} has shape {tuple(tensor.shape)}, expected {wanted}{hint}.")
            if kind == "labels" and (tensor.is_floating_point() or bool((tensor < 0).any())):
                raise ValueError(
                    f"{where} holds {tensor.dtype} from {tensor.min()}: give whole class labels from 0 on."
                )
            if kind == "edges" and not bool((((tensor >= 0) & (tensor <= 1)) | (tensor == 255)).all()):
                raise ValueError(f"{where} leaves 0..1: give probabilities, the sigmoid of logits.")

    def save(self, path: str | Path) -> None:
        """Write the samples as safetensors, whole or not at all."""
        tasks, methods = list(self.kinds), list(self.predictions)
        tensors = {"images": self.images}
        for place, task in enumerate(tasks):
            tensors[f"targets.{place}"] = self.targets[task]
            for row, method in enumerate(methods):
                tensors[f"predictions.{row}.{place}"] = self.predictions[method][task]
        metadata = {
            "format": FORMAT,
            "version": "1",
            "kinds": json.dumps(dict(self.kinds)),
            "methods": json.dumps(methods),
        }
        # Copies, as the format refuses tensors that share memory.
        copies = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        with written_whole(Path(path)) as temporary:
            save_file(copies, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Samples:
        """Read samples that `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file holds no samples, or is damaged.
        """
        try:
            with safe_open(Path(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if (metadata.get("format"), metadata.get("version")) != (FORMAT, "1"):
                    raise ValueError(f"format {metadata.get('format')!r}, version {metadata.get('version')!r}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            kinds, methods = (parse_json(metadata[name], f"{path}: {name}") for name in ("kinds", "methods"))
            return cls(
                images=tensors["images"],
                targets={task: tensors[f"targets.{place}"] for place, task in enumerate(kinds)},
                predictions={
                    method: {task: tensors[f"predictions.{row}.{place}"] for place, task in enumerate(kinds)}
                    for row, method in enumerate(methods)
                },
                kinds=kinds,
            )
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{path} holds no samples that this version reads ({error}): write it again.") from error
