"""What is known of Taskonomy against which a copy is checked."""

from __future__ import annotations

from typing import cast

from experiments.dense.checking.checked import CheckedSuite
from experiments.dense.checking.findings import Findings
from experiments.dense.checking.statistics import Seen, size_words
from experiments.dense.datasets.facts import DenseSuite
from experiments.dense.datasets.reader import IMAGE
from experiments.dense.taskonomy.domains import DOMAINS, RGB, SIZE, Storage
from experiments.dense.taskonomy.reader import SOURCE, TaskonomyReader
from experiments.dense.taskonomy.splits import COUNTS, KNOWN_CORRUPT, WITHHELD, counted
from experiments.dense.taskonomy.suite import TASKS, TaskonomyChoices, listed_buildings, made_from, opened

_BITS: dict[Storage, tuple[int, int]] = {"gray16": (1, 16), "gray": (1, 8), "RGB": (3, 8)}
_KNOWN_GAPS = {("edge_texture", "wiconisco"): 80}
"""About so many files of a domain are missing or corrupt in everybody's download of a building."""


def official(suite: DenseSuite, findings: Findings) -> None:
    """Compare the buildings with the official ones, and say of each domain where it has gaps."""
    reader = cast(TaskonomyReader, suite.reader)
    buildings = listed_buildings(reader, suite.choices)
    own, meant = counted(buildings), COUNTS[suite.choices["split"]]  # type: ignore[index]
    words = f"{own[0]} / {own[1]} / {own[2]} buildings to train, choose and measure on"
    if own == meant:
        findings.add("fact", "buildings", f"{words}: the official {suite.choices['split']}")
    else:
        findings.add("note", "buildings", f"{words}; of {suite.choices['split']} {meant} are official: not comparable")
    every = [name for names in buildings.values() for name in names]
    withheld = [name for name in every if name in WITHHELD and name not in reader.buildings]
    if withheld:
        findings.add("note", "buildings", f"{', '.join(withheld)} not there: the download gives them to nobody")
    for split in ("train", "val", "test"):
        if split in suite.choices:
            findings.add("fact", split, suite.choices[split])
    _gaps(reader, every, suite.train.tasks, findings)
    for domain, building, point, view in sorted(KNOWN_CORRUPT):
        if building in every and reader.has(f"{building}/{point}/{view}", IMAGE):
            findings.add("note", domain, f"{building}/{point}/{view} is corrupt in everybody's download, and left out")
    if reader.listing.strange:
        paths = [str(path) for path in reader.listing.strange]
        findings.add("note", "names", "PNGs whose names say no building, point, view and domain are not read", paths)


def _gaps(reader: TaskonomyReader, buildings: list[str], tasks: tuple[str, ...], findings: Findings) -> None:
    for task in tasks:
        gaps, known = [], []
        for name in buildings:
            building = reader.buildings.get(name)
            if building is None:
                continue
            lacking = int((building.has(RGB) & ~building.has(task)).sum())
            pictures = int(building.has(RGB).sum())
            if lacking:
                (known if (task, name) in _KNOWN_GAPS else gaps).append(f"{name} ({lacking} of {pictures} views)")
        if gaps:
            findings.add("note", task, f"views of {len(gaps)} buildings are not there: {', '.join(gaps[:6])}", gaps)
        if known:
            findings.add("note", task, f"not there in {', '.join(known)}, as in everybody's download")


def suspect(suite: DenseSuite, seen: Seen, findings: Findings) -> None:
    """Look for PNGs of other channels and bits, for other sizes, and for depth without a hole anywhere."""
    for of, own in seen.maps.items():
        meant = _BITS[DOMAINS[of].storage] if of in DOMAINS else (3, 8)
        other = {bits: count for bits, count in own.bits.items() if bits != meant}
        if other:
            said = ", ".join(f"{count} of {channels} x {bits} bits" for (channels, bits), count in other.items())
            findings.add("error", of, f"{said}, but {meant[0]} x {meant[1]} are meant: these are other files")
    sizes = seen.maps[IMAGE].sizes if IMAGE in seen.maps else {}
    if any(size != SIZE for size in sizes):
        findings.add("note", IMAGE, f"{size_words(sizes)}, but downloads have {SIZE[0]} x {SIZE[1]}")


TASKONOMY = CheckedSuite(
    "taskonomy",
    TASKS,
    TaskonomyChoices,
    opened,
    made_from,
    official,
    suspect,
    SOURCE,
    {"missing": "leave_out", "absent": "leave_out", "unreadable": "skip", "protocol": "standard"},
    looked_at=700,
)
