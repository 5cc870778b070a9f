"""What an insert finds in a state dict of an earlier version."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor


def read_scale(state_dict: dict[str, Any], key: str, version: int | None) -> None:
    """Make `W - 1` of the `W` that state dicts of version 1 hold.

    A state dict that has lost its versions, in a safetensors file say, is taken as one of today.

    Warns:
        UserWarning: It has lost them, and its values lie around 1.

    Example:
        >>> import torch
        >>> old = {"dtme.scale": torch.tensor([[1.5]])}
        >>> read_scale(old, "dtme.scale", 1)
        >>> old["dtme.scale"].item()
        0.5
    """
    scale = state_dict.get(key)
    if not isinstance(scale, Tensor) or scale.is_meta or hasattr(scale, "full_tensor"):  # no process sees all of it
        return
    if version == 1:
        state_dict[key] = scale - 1
    elif version is None and bool((scale.detach().mean(-1) > 0.5).all()):
        warnings.warn(
            f"{key!r} lies around 1, and the state dict does not say which version it is of. dtme 0.1.0 kept the factor W "
            "there, and W - 1 is kept now: if it is that old, subtract 1 from every '...dtme.scale' and load it again.",
            UserWarning,
            stacklevel=2,
        )
