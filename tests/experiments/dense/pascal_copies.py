"""A small PASCAL-Context with all five tasks, in the very formats of the field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
from nyud_copies import jpeg, mat, png

TRAIN, TEST = ("2008_000008", "2008_000015"), ("2008_000002", "2008_000003")
PEOPLE = ("2008_000002", "2008_000008")
"""Images with a person whose parts are annotated."""


def thing(name: str, number: int, mask: np.ndarray, parts: list[tuple[str, np.ndarray]]) -> tuple:
    held = np.zeros((1, len(parts)), dtype=[("part_name", object), ("mask", object)])
    for place, (part, of) in enumerate(parts):
        held[0, place] = (part, of)
    return name, float(number), mask, held if parts else np.zeros((0, 0))


def annotation(path: Path, name: str, things: list[tuple]) -> None:
    objects = np.zeros(
        (1, len(things)), dtype=[("class", object), ("class_ind", object), ("mask", object), ("parts", object)]
    )
    for place, one in enumerate(things):
        objects[0, place] = one
    anno = np.zeros((1, 1), dtype=[("imname", object), ("objects", object)])
    anno[0, 0] = (name, objects)
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"anno": anno}, do_compression=True)


def blank(size: tuple[int, int], *boxes: tuple[slice, slice]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    for box in boxes:
        mask[box] = 1
    return mask


def contexts(size: tuple[int, int]) -> np.ndarray:
    """Left a person (284), right an aeroplane (2)."""
    labels = np.full(size, 284, np.uint16)
    labels[:, size[1] // 2 :] = 2
    return labels


def semseg(name: str, size: tuple[int, int]) -> np.ndarray:
    labels = np.random.default_rng(int(name[-3:])).integers(0, 21, size).astype(np.uint8)
    labels[0, :3] = (0, 20, 255)
    return labels


def pascal_copy(root: Path, size: tuple[int, int] = (30, 50)) -> Path:
    for split, names in (("train", TRAIN), ("val", TEST)):
        (root / "ImageSets/Context").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Context/{split}.txt").write_text("".join(f"{name}\n" for name in names))
    for name in (*TRAIN, *TEST):
        rng = np.random.default_rng(int(name[-3:]) + 100)
        jpeg(root / f"JPEGImages/{name}.jpg", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        png(root / f"semseg/pascal-context/{name}.png", semseg(name, size))
        png(root / f"normals_distill/{name}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        png(root / f"sal_distill/{name}.png", rng.integers(0, 256, size, dtype=np.uint8))
        mat(root / f"pascal-context/trainval/{name}.mat", LabelMap=contexts(size))
        chair = thing("chair", 9, blank(size), [("seat", blank(size))])
        person = thing(
            "person",
            15,
            blank(size, np.s_[2:20, 3:12]),
            [("head", blank(size, np.s_[2:8, 3:9])), ("lfoot", blank(size, np.s_[6:10, 3:9])), ("torso", blank(size))],
        )
        hidden = thing("person", 15, blank(size, np.s_[0:1, 0:1]), [])
        annotation(
            root / f"human_parts/{name}.mat", name, [chair, person, hidden] if name in PEOPLE else [chair, hidden]
        )
    png(root / f"semseg/VOC12/{TEST[0]}.png", np.full(size, 7, np.uint8))
    return root
