"""What is known of PASCAL-Context against which a copy is checked."""

from __future__ import annotations

from experiments.dense.checking.checked import CheckedSuite
from experiments.dense.checking.findings import Findings
from experiments.dense.checking.statistics import Seen, size_words
from experiments.dense.datasets.facts import DenseSuite
from experiments.dense.datasets.reader import IMAGE
from experiments.dense.pascal_context.layout import SOURCES
from experiments.dense.pascal_context.official import COUNTS, DIGESTS, digest
from experiments.dense.pascal_context.suite import TASKS, PascalChoices, made_from, opened


def official(suite: DenseSuite, findings: Findings) -> None:
    """Compare the lists with the official ones, and say which maps of classes are read."""
    for split, count in COUNTS.items():
        own = suite.reader.splits[split]
        if digest(own) == DIGESTS[split]:
            findings.add("fact", split, f"the official {count}")
        else:
            findings.add("note", split, f"{len(own)} images, not the official {count}: not comparable")
    if "semseg" in suite.train.tasks:
        names = [*suite.train.names, *suite.test.names]
        voc = sum("VOC12" in suite.reader.place(name, "semseg").parts for name in names)
        findings.add("fact", "semseg", f"of {len(names)} maps {voc} are VOC's, the others PASCAL-Context's")


def suspect(suite: DenseSuite, seen: Seen, findings: Findings) -> None:
    """Look for pictures that do not fit."""
    sizes = seen.maps[IMAGE].sizes if IMAGE in seen.maps else {}
    large = {size: count for size, count in sizes.items() if size[0] > suite.size[0] or size[1] > suite.size[1]}
    if large and suite.choices.get("augmentation") == "invpt":
        findings.add(
            "error",
            IMAGE,
            f"{sum(large.values())} pictures, of {size_words(large)}, do not fit into {suite.choices['size']}: padding never "
            "shrinks. The benchmark's have at most 500 pixels a side: get its copy.",
        )


PASCAL_CONTEXT = CheckedSuite(
    "pascal_context",
    TASKS,
    PascalChoices,
    opened,
    made_from,
    official,
    suspect,
    SOURCES,
    {"missing": "leave_out", "unreadable": "skip"},
)
