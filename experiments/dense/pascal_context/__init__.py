"""PASCAL-Context with the five tasks of the multi-task literature."""

from __future__ import annotations

from experiments.dense.pascal_context.suite import PascalChoices, suite

__all__ = ["PascalChoices", "suite"]
