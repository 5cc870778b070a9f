"""What is known of the 13-class set against which a copy is checked."""

from __future__ import annotations

from experiments.dense.checking.checked import CheckedSuite
from experiments.dense.checking.findings import Findings
from experiments.dense.checking.statistics import Seen
from experiments.dense.datasets.facts import DenseSuite
from experiments.dense.nyud13.layouts import SOURCES
from experiments.dense.nyud13.maps import COUNTS, SIZE
from experiments.dense.nyud13.suite import TASKS, Nyud13Choices, made_from, opened


def official(suite: DenseSuite, findings: Findings) -> None:
    """Compare counts and size with the official ones."""
    for split, count in COUNTS.items():
        own = len(suite.train if split == "train" else suite.test)
        if own != count:
            findings.add("note", split, f"{own} images, {count} are official: not comparable")
    if suite.size != SIZE:
        findings.add("note", "image", f"{suite.size[0]} x {suite.size[1]}, but {SIZE[0]} x {SIZE[1]} is this benchmark")


def suspect(suite: DenseSuite, seen: Seen, findings: Findings) -> None:
    """Look for images of another size than the suite's."""
    for of, own in seen.maps.items():
        other = [size for size in own.sizes if size != suite.size]
        if other:
            findings.add("error", of, f"sizes {other[:3]} beside {suite.size}: these are of another benchmark")


NYUD13 = CheckedSuite(
    "nyud13",
    TASKS,
    Nyud13Choices,
    opened,
    made_from,
    official,
    suspect,
    SOURCES,
    {"missing": "leave_out", "unreadable": "skip"},
)
