"""One thing varied: an ablation and its arms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from experiments.dense.methods import METHODS, Method


@dataclass(frozen=True)
class Ablation:
    """One thing varied.

    Attributes:
        name: As the command line calls it.
        says: What is varied, and which table or figure of the paper does the same; the title of the figure.
        axis: What the values are.
        arms: Value and method.
        figure: What is drawn: each arm's gain over MT, its conflict before and after, or the cosines of its gradients.
        price: What is shown beside a gain: a step as a multiple of MT's, or the analysis as a share of MT's training.
    """

    name: str
    says: str
    axis: str
    arms: tuple[tuple[str, Method], ...]
    figure: Literal["gains", "conflict", "cosines"] = "gains"
    price: Literal["step", "analysis"] = "step"


def of_table(*names: str) -> tuple[Method, ...]:
    """Methods of the table."""
    return tuple(next(method for method in METHODS if method.name == name) for name in names)


def varied(
    base: str, values: Sequence[str], own: str, change: Callable[[str], dict[str, Any]]
) -> tuple[tuple[str, Method], ...]:
    """A method of the table, and what it is under other values than the table's own."""
    (method,) = of_table(base)
    return tuple(
        (value, method if value == own else replace(method, name=f"{base}, {value}", **change(value)))
        for value in values
    )


def setting(base: str, field: str, values: Sequence[str], own: str, word: str) -> tuple[tuple[str, Method], ...]:
    """A method of the table under several values of one setting of the recipe."""
    methods = varied(base, values, own, lambda value: {"settings": {field: float(value)}})
    return tuple(
        (value, method if value == own else replace(method, name=f"{base}, {word} {value}"))
        for value, method in methods
    )
