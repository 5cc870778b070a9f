"""NYUD-v2 with 40 classes, in each of the ways that the field stores it."""

from __future__ import annotations

from experiments.dense.nyud.suite import NyudChoices, suite

__all__ = ["NyudChoices", "suite"]
