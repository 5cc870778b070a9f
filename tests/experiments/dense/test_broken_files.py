"""Whatever bytes a file has, it is read, or refused by name: nothing else is ever raised."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from nyud13_copies import parquet_copy
from nyud_copies import astmt_copy, invpt_copy, jpeg, labeled_mat, mat, npy, png
from pascal_copies import TEST, pascal_copy

from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.headers import read_header
from experiments.dense.nyud.layouts import open_nyud
from experiments.dense.nyud13.layouts import open_nyud13
from experiments.dense.pascal_context.layout import open_pascal

NYUD = {"image", "semseg", "depth", "normals", "edges"}
PASCAL = {"image", "semseg", "parts", "saliency", "normals", "edges"}


def spoilt(whole: bytes, rng: np.random.Generator) -> list[bytes]:
    """Cut short, with bytes changed, with a piece missing, empty, and nothing of the kind."""
    made = [whole[: int(len(whole) * share)] for share in (0.02, 0.3, 0.9, 0.999)]
    for _ in range(12):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 6):
            changed[place] = rng.integers(256)
        made.append(bytes(changed))
    for _ in range(4):  # in the header, where sizes and types stand
        changed = bytearray(whole)
        changed[int(rng.integers(0, min(len(whole), 160)))] = int(rng.integers(256))
        made.append(bytes(changed))
    middle = len(whole) // 2
    return [*made, whole[:middle] + whole[middle + 7 :], b"", b"<html>not found</html>", bytes(300)]


@pytest.mark.parametrize(
    ("copy", "opened", "name", "maps"),
    [
        (invpt_copy, open_nyud, "0001", NYUD),
        (astmt_copy, open_nyud, "0001", NYUD),
        (pascal_copy, open_pascal, TEST[0], PASCAL),
    ],
    ids=["InvPT", "ASTMT", "PASCAL"],
)
@pytest.mark.filterwarnings("default")  # Pillow warns of odd metadata, and reads on
def test_any_bytes_are_read_or_refused_by_name(copy, opened, name, maps, tmp_path):
    reader = opened(copy(tmp_path))
    rng, refusals = np.random.default_rng(0), []
    for of in sorted(maps):
        path: Path = reader.place(name, of)
        whole = path.read_bytes()
        for content in spoilt(whole, rng):
            path.write_bytes(content)
            refusals += [refusal(partial(reader.read, name, of)), refusal(partial(read_header, path))]
        path.write_bytes(whole)
        reader.read(name, of)
    said = [error for error in refusals if error]
    assert len(said) > 50
    assert all(str(tmp_path) in error for error in said)


def refusal(attempt: Callable[[], object]) -> str:
    """What a data error said; nothing if there was none."""
    try:
        attempt()
    except DataError as error:
        return str(error)
    return ""


def test_an_official_file_of_any_bytes(tmp_path):
    whole = labeled_mat(tmp_path).read_bytes()
    for number, content in enumerate(spoilt(whole, np.random.default_rng(1))):
        path = tmp_path / f"{number}.mat"  # an open file is not to change under its reader
        path.write_bytes(content)

        def read(path: Path = path) -> None:
            reader = open_nyud(path)
            for of in ("image", "semseg", "depth"):
                reader.read("0001", of)

        refusal(read)


def test_parquet_of_any_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path / "cache"))
    root = parquet_copy(tmp_path / "p", (18, 24))
    path = next(root.rglob("train-00000*"))
    whole, refused = path.read_bytes(), 0
    for content in spoilt(whole, np.random.default_rng(2)):
        path.write_bytes(content)
        refused += bool(refusal(lambda: open_nyud13(root, size=(18, 24)).read("train-0", "image")))
    assert refused > 8


def test_pickled_arrays_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    reader = open_nyud(invpt_copy(tmp_path / "a"))
    np.save(reader.place("0001", "depth"), np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(DataError):
        reader.read("0001", "depth")
    with pytest.raises(DataError):
        read_header(reader.place("0001", "depth"))
    assert not (tmp_path / "sprung").exists()


def test_one_format_is_not_taken_for_another(tmp_path):
    reader = open_nyud(invpt_copy(tmp_path))
    jpeg(reader.place("0001", "image"), np.zeros((42, 56, 3), np.uint8))
    npy(reader.place("0001", "semseg"), np.zeros((42, 56)))
    png(reader.place("0001", "depth"), np.zeros((42, 56), np.uint8))
    mat(reader.place("0001", "normals"), depth=np.zeros((42, 56)))
    for of in ("image", "semseg", "depth"):
        with pytest.raises(DataError, match="cannot be read"):
            reader.read("0001", of)
        with pytest.raises(DataError, match="cannot be read"):
            read_header(reader.place("0001", of))
