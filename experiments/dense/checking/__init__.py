"""Whether data on disk is what a suite means, found out before anything is trained on it."""

from __future__ import annotations

from experiments.dense.checking.check import check, check_before_run
from experiments.dense.checking.checked import CheckedSuite
from experiments.dense.checking.findings import Finding, Findings
from experiments.dense.checking.show import show

__all__ = ["CheckedSuite", "Finding", "Findings", "check", "check_before_run", "show"]
