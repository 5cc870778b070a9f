"""Inserts that a state dict and a model do not have in common are explained where torch names keys alone, or keeps silent."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

CARRIED = "dtme_plan: call dtme.carry_plan(model) before loading"
"""The key under which a state dict carries its plan. Whoever loads it and knows nothing of dtme prints what to do."""


def explain_inserts(model: nn.Module, incompatible: Any) -> None:
    """Say what it means that inserts are missing in a state dict, or unexpected. A hook behind the loading of one.

    What is missing is explained in the error that torch raises where loading is strict; where it is not, it was asked for.

    Warns:
        UserWarning: The state dict holds inserts that the model has no place for, which are lost where loading is not strict.
    """
    missing: list[str] = incompatible.missing_keys
    place = next((place for place, name in enumerate(missing) if _is_insert(name)), None)
    if place is not None:
        missing[place] = _Explained(missing[place])
    unexpected = next(filter(_is_insert, incompatible.unexpected_keys), None)
    if unexpected is not None:
        warnings.warn(
            f"dtme: the state dict holds inserts that this model has no place for ({unexpected!r}), since it has no plan, or "
            "another. Give it theirs before it is loaded: dtme.resume(model, folder) where the plan lies beside the checkpoint, "
            "or dtme.carry_plan(model) where the state dict carries it.",
            UserWarning,
            stacklevel=2,
        )


class _Explained(str):
    """The name of a missing key, which is explained where it is written into a message."""

    __slots__ = ()

    def __format__(self, form: str) -> str:
        return (
            f"{super().__format__(form)} (dtme: the model has inserts that the state dict does not hold. If it was saved before "
            "their plan was applied, call dtme.remove(model), load it, and apply the plan then; or let state dicts carry their "
            "plan, dtme.carry_plan(model))"
        )


def _is_insert(name: str) -> bool:
    return ".dtme." in f".{name}" or name.endswith(CARRIED)
