"""Archives from anywhere: no other decoder than is meant, no more bytes than there are."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from experiments.dense.nuclei import archive


def packed(folder: Path, **files: bytes) -> Path:
    with tarfile.open(folder / "data.tar", "w") as tar:
        for name, content in {"splits.json": b'{"train": ["a"], "test": ["b"]}', **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return folder / "data.tar"


def image(kind: str, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["EPS", "GIF", "TIFF", "BMP", "PPM"])
def test_a_picture_of_another_format_is_never_decoded(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: pytest.fail("a program was started"))
    files = {"images/a.jpg": image(kind), "instances/a.png": image("PNG", mode="L")}
    with pytest.raises(ValueError, match=r"images/a\.jpg in .*data\.tar cannot be decoded"):
        archive.read(packed(tmp_path, **files)).picture("a")


def test_a_picture_that_claims_too_many_pixels_is_not_decoded(tmp_path: Path):
    files = {"images/a.jpg": image("PNG", (4097, 4096), "1"), "instances/a.png": image("PNG", mode="L")}
    with pytest.raises(ValueError, match=r"images/a\.jpg .* claims 4096 x 4097 pixels"):
        archive.read(packed(tmp_path, **files)).picture("a")


def test_a_sparse_tar_is_refused_before_it_is_unpacked(tmp_path: Path):
    """A head of GNU's old sparse form that claims a terabyte, in 2 kB."""
    path = packed(tmp_path)
    member = tarfile.TarInfo("images/a.jpg")
    member.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    head[483:495] = b"\x80" + (2**40).to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    path.write_bytes(bytes(head) + path.read_bytes())
    with pytest.raises(ValueError, match=r"data\.tar tells of more bytes than it has, at 'images/a\.jpg'"):
        archive.read(path)


@pytest.mark.parametrize(
    "splits",
    [b"[" * 50_000, b"\xff\xfe", b"5", b'{"train": "abc", "test": ["b"]}', b'{"train": 5}', b'{"train": ["a"]}', b"{}"],
)
def test_whatever_stands_in_the_splits_is_answered_by_name(splits: bytes, tmp_path: Path):
    with pytest.raises(ValueError, match=r"splits\.json in .*data\.tar"):
        archive.read(packed(tmp_path, **{"splits.json": splits})).splits()


def test_any_bytes_in_place_of_a_tar_are_answered_by_name(tmp_path: Path):
    whole = packed(tmp_path, **{"images/a.jpg": image("JPEG")}).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(300):
        spoilt = bytearray(whole)
        for place in random.integers(0, min(len(whole), 1536), 3):
            spoilt[place] = random.integers(256)
        (tmp_path / "data.tar").write_bytes(spoilt)
        try:
            archive.read(tmp_path / "data.tar").splits()
        except (ValueError, FileNotFoundError) as error:
            assert "data.tar" in str(error)  # noqa: PT017
