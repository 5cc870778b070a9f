"""Every method there is, by name: those of the table, and the arms of the ablations."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.ablations import ABLATIONS
from experiments.dense.methods import METHODS, Method


def method_of(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: There is none; the message lists those of the table.

    Example:
        >>> method_of("MT").says
        'plain multi-task training, the weighted sum of the losses'
    """
    for method in every_method():
        if method.name == name:
            return method
    raise ValueError(f"methods: there is no {name!r}. Choose from: {', '.join(method.name for method in METHODS)}.")


def every_method() -> Sequence[Method]:
    """Those of the table first, in its order; then what only ablations have."""
    arms = (method for ablation in ABLATIONS for _, method in ablation.arms)
    return list({method.name: method for method in (*METHODS, *arms)}.values())
