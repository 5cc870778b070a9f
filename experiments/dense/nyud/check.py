"""What is known of NYUD-v2 against which a copy is checked."""

from __future__ import annotations

from experiments.dense.checking.checked import CheckedSuite
from experiments.dense.checking.findings import Findings
from experiments.dense.checking.statistics import Seen, size_words
from experiments.dense.datasets.facts import DenseSuite
from experiments.dense.datasets.reader import IMAGE
from experiments.dense.nyud.layouts import LAYOUTS, SOURCES
from experiments.dense.nyud.official import official_split
from experiments.dense.nyud.suite import TASKS, NyudChoices, made_from, opened


def official(suite: DenseSuite, findings: Findings) -> None:
    """Compare the lists with the official ones."""
    for split, names in official_split().items():
        own = set(suite.train.names if split == "train" else suite.test.names)
        if own == set(names):
            findings.add("fact", split, f"the official {len(names)}")
        else:
            findings.add("note", split, f"{len(own)} images, not the official {len(names)}: not comparable")


def suspect(suite: DenseSuite, seen: Seen, findings: Findings) -> None:
    """Look for 13 classes, for images of another copy's size, and for normals that are none."""
    labels = seen.maps.get("semseg")
    known = [number for number in labels.classes if number != 255] if labels else []
    if labels is not None and labels.decoded >= 8 and known and max(known) < 13:
        findings.add(
            "error",
            "semseg",
            f"no label above {max(known) + 1} in {labels.decoded} maps: these are 13 classes where 40 are meant, "
            "another benchmark. Get the labels of 40 classes.",
        )
    sizes = seen.maps[IMAGE].sizes if IMAGE in seen.maps else {}
    meant = next((layout.size for layout in LAYOUTS if layout.name == suite.reader.layout), None)
    if meant is not None and suite.choices.get("border") == "keep" and any(size != meant for size in sizes):
        said = f"{size_words(sizes)}, but this layout has {meant[0]} x {meant[1]}: not comparable"
        findings.add("note", IMAGE, said)
    if suite.choices.get("augmentation") == "invpt" and any(
        size[0] > suite.size[0] or size[1] > suite.size[1] for size in sizes
    ):
        findings.add(
            "error", IMAGE, f"{size_words(sizes)} do not all fit into {suite.choices['size']}: padding never shrinks"
        )
    normals = seen.maps.get("normals")
    if normals is not None and normals.short:
        share = 100 * normals.short / max(normals.pixels, 1)
        findings.add(
            "note",
            "normals",
            f"{share:.2f} % of the pixels are no directions but gray, and count as in the field; --gray-normals unknown leaves "
            "them out",
        )


NYUD = CheckedSuite(
    "nyud",
    TASKS,
    NyudChoices,
    opened,
    made_from,
    official,
    suspect,
    SOURCES,
    {"missing": "leave_out", "unreadable": "skip"},
)
