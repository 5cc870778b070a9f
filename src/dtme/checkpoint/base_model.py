"""The base of a checkpoint: what a model has to be, and which weights it has to have, for saved inserts to mean anything.

The structure (every block of the trunk, its width and the shapes of its parameters) has to fit. The weights ought to be
those the inserts were trained beside, since the trunk is trained along with them; a few values of every parameter are
remembered, enough to tell other weights from the same weights in another precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dtme._wrappers import bare_key, bare_keys, modules_by_any_name, modules_by_name, unwrapped
from dtme.inserts.insert import inserted_names
from dtme.trunk.blocks import find_blocks
from dtme.trunk.layout import width_of

_PLACES = (0.382, 0.854)
"""Where in a parameter, as parts of its length, a value is remembered."""
_ROUNDING = 2**-7
"""Relative difference of two values that are the same in bfloat16, or in any wider type."""
_SMALLEST = 1e-7
"""What float16 makes of values near zero is off by less."""


def describe(model: nn.Module, blocks: Sequence[str]) -> dict[str, Any]:
    """The identity of a base, as plain data: class, name and revision, structure, and some of its weights.

    Args:
        model: The base; what `apply` inserted is left out.
        blocks: Blocks that belong to it, whether `find_blocks` finds them or not.

    Example:
        >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False)
        >>> base = describe(encoder, ["layers.1"])
        >>> [(kind["blocks"], kind["type"], kind["width"]) for kind in base["trunk"]]
        [(['layers.0', 'layers.1'], 'TransformerEncoderLayer', 8)]
    """
    kinds: list[dict[str, Any]] = []
    names, modules = _trunk(model, blocks), modules_by_any_name(model)
    for name in names:
        own = _kind(modules[name])
        like = next((kind for kind in kinds if all(kind[key] == value for key, value in own.items())), None)
        if like is None:
            kinds.append({"blocks": [name], **own})
        else:
            like["blocks"].append(name)
    return {**origin(model), "trunk": kinds, "weights": _values(model, names)}


def origin(model: nn.Module) -> dict[str, str | None]:
    """A model's class and, where a part of it knows (transformers' config, timm's), its name and revision."""
    known: dict[str, str | None] = {"class": _class(unwrapped(model)), "name": None, "revision": None}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        name = getattr(config, "_name_or_path", None)
        if isinstance(name, str) and name and not Path(name).exists():
            return known | {"name": name, "revision": getattr(config, "_commit_hash", None)}
        pretrained: Any = getattr(module, "pretrained_cfg", None)
        if isinstance(pretrained, Mapping) and pretrained.get("architecture"):
            return known | {"name": ".".join(str(pretrained[k]) for k in ("architecture", "tag") if pretrained.get(k))}
    return known


def differences(model: nn.Module, base: Mapping[str, Any]) -> list[str]:
    """How the structure of a model differs from that of a described base; nothing where it fits."""
    modules = modules_by_name(model)
    saved = {name: kind for kind in base["trunk"] for name in kind["blocks"]}
    found: dict[str, list[str]] = {}
    for name, kind in saved.items():
        for difference in _differences(kind, _kind(modules[name])) if name in modules else ["is missing here"]:
            found.setdefault(difference, []).append(name)
    lists = {name.rpartition(".")[0] for name in saved if name.rpartition(".")[2].isdigit()}
    for name in _trunk(model, ()):
        if name not in saved and name.rpartition(".")[0] in lists:
            found.setdefault("is missing there", []).append(name)
    return [f"{_some(names)} {difference}" for difference, names in found.items()]


def other_weights(model: nn.Module, base: Mapping[str, Any]) -> list[str]:
    """Blocks, and modules outside of them, whose weights are not those of a described base.

    What one of the two lacks, the branch of a task that is not wanted here, is passed over.
    """
    own = _values(model, [name for kind in base["trunk"] for name in kind["blocks"]])
    return [
        place
        for place, values in base["weights"].items()
        if place in own and not (len(values) == len(own[place]) and all(map(_same, values, own[place])))
    ]


def named(base: Mapping[str, Any]) -> str:
    """What a base, or an origin, is called."""
    known = " ".join(str(base[key]) for key in ("name", "revision") if base.get(key))
    return f"{base['class']} ({known})" if known else str(base["class"])


def gathered(tensor: Tensor) -> Tensor:
    """A tensor's values; of one that is sharded all of them, for which every process has to ask."""
    return getattr(tensor, "full_tensor", lambda: tensor)().detach()


def check_on_hand(tensors: Mapping[str, Any]) -> None:
    """Refuse to save what is not here.

    Raises:
        ValueError: A tensor is on the meta device.
    """
    absent = next((name for name, tensor in tensors.items() if getattr(tensor, "is_meta", False)), None)
    if absent is not None:
        raise ValueError(
            f"save_pretrained: {absent!r} is on the meta device, which holds no numbers. Load the weights first."
        )


def _trunk(model: nn.Module, blocks: Sequence[str]) -> list[str]:
    try:
        found = set(find_blocks(model))
    except ValueError:
        found = set()
    return [name for name in modules_by_name(model) if name in found or name in blocks]


def _kind(block: nn.Module) -> dict[str, Any]:
    try:
        width = width_of(block)
    except ValueError:
        width = None
    block = unwrapped(block)
    inserted, keys = inserted_names(block), bare_keys(block)
    shapes = {bare_key(name, keys): _shape(p) for name, p in block.named_parameters() if name not in inserted}
    return {"type": _class(block), "width": width, "parameters": shapes}


def _class(module: nn.Module) -> str:
    """The class as it was written: FSDP2 and parametrizations put one of their own in front."""
    names = [kind.__name__ for kind in type(module).__mro__]
    return next(name for name in names if not name.startswith(("FSDP", "Parametrized")))


def _shape(parameter: Tensor) -> str:
    return "x".join(map(str, parameter.shape)) or "scalar"


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    if there["width"] != here["width"]:
        return [f"takes tokens of {there['width']} channels there, of {here['width']} here"]
    one, other = there["parameters"], here["parameters"]
    shapes = [
        f"{name} is {one.get(name, 'missing')} there, {other.get(name, 'missing')} here"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]
    if not shapes:
        return []
    kinds = "" if there["type"] == here["type"] else f" (a {there['type']} there, a {here['type']} here)"
    more = f"; {len(shapes) - 2} more differ" if len(shapes) > 2 else ""
    return [f"has parameters of other shapes{kinds}: {'; '.join(shapes[:2])}{more}"]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more:" if len(names) > 3 else shown


def _values(model: nn.Module, blocks: Sequence[str]) -> dict[str, list[float]]:
    """Some values of every parameter, by its block, or outside of the blocks by the module that holds it."""
    values: dict[str, list[float]] = {}
    inserted, keys = inserted_names(model), bare_keys(model)
    for own, parameter in model.named_parameters():
        if own in inserted or not parameter.is_floating_point() or not parameter.numel():
            continue
        name = bare_key(own, keys)
        place = next((block for block in blocks if name.startswith(f"{block}.")), name.rpartition(".")[0] or name)
        if parameter.is_meta:  # kept elsewhere, and not known here
            picked = [math.nan] * len(_PLACES)
        else:
            flat = gathered(parameter).reshape(-1)
            picked = flat[[int(part * len(flat)) for part in _PLACES]].double().tolist()
        values.setdefault(place, []).extend(picked)
    return values


def _same(one: float, other: float) -> bool:
    unknown = math.isnan(one) or math.isnan(other)
    return unknown or math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=_SMALLEST)
