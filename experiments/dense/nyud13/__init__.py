"""The 13-class NYUv2 at 288 x 384: a benchmark of its own, in every number incomparable with NYUD-v2 of 40 classes."""

from __future__ import annotations

from experiments.dense.nyud13.suite import Nyud13Choices, suite

__all__ = ["Nyud13Choices", "suite"]
