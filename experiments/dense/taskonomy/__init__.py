"""Taskonomy with the eleven tasks of the paper."""

from __future__ import annotations

from experiments.dense.taskonomy.suite import TaskonomyChoices, suite

__all__ = ["TaskonomyChoices", "suite"]
