"""Which images have people with parts, the only ones that some readers train the single task of parts on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from dtme._files import parse_json, read_text, write_text
from experiments.dense.datasets.arrays import read_mat
from experiments.dense.datasets.cache import cache_dir
from experiments.dense.datasets.reader import Reader
from experiments.dense.pascal_context.targets import PERSON, people_in


def with_people(
    reader: Reader, names: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> tuple[str, ...]:
    """Those of the images on which parts of people are annotated.

    Told by the lists under ImageSets/Parts that the field's readers leave in the folder, where they are there and whole; found
    out otherwise, in some minutes, and kept in the user's cache: nothing is written beside the data.

    Args:
        reader: Of PASCAL-Context.
        names: Of the images.
        progress: Told how many are done, and of how many.
    """
    known = _from_lists(reader.root / "ImageSets/Parts")
    if not known.keys() >= set(names):
        known = _found_out(reader, names, progress or (lambda done, total: None))
    return tuple(name for name in names if known[name])


def _from_lists(folder: Path) -> dict[str, bool]:
    """Of every image in the lists, each a JSON object of the classes of an image's objects, -1 for one without parts."""
    known = {}
    try:
        for path in sorted(folder.glob("*.txt")):
            read = parse_json(read_text(path), str(path))
            known |= {name: PERSON in classes for name, classes in read.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # half-written, as by a reader that was stopped: found out instead
    return known


def _found_out(reader: Reader, names: Sequence[str], progress: Callable[[int, int], None]) -> dict[str, bool]:
    digest = hashlib.sha256("\n".join(names).encode())
    for name in names:
        digest.update(f"{reader.place(name, 'parts').stat().st_size},".encode())
    path = cache_dir() / "pascal_context" / f"people-{digest.hexdigest()[:16]}.json"
    try:
        kept = parse_json(read_text(path), str(path))
        if kept.keys() >= set(names):
            return kept
    except (OSError, ValueError, AttributeError):
        pass
    known = {}
    for done, name in enumerate(names, start=1):
        known[name] = any(True for _ in people_in(read_mat(reader.place(name, "parts"), "anno")))
        progress(done, len(names))
    write_text(path, json.dumps(known))
    return known
