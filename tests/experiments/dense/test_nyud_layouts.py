"""Every layout of NYUD-v2 is told by what its files are, gives what it holds, and is never written to."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nyud_copies import (
    TEST,
    TRAIN,
    astmt_copy,
    invpt_copy,
    jpeg,
    labeled_mat,
    lists,
    maps,
    mat,
    mti_copy,
    npy,
    png,
    unit,
)

from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.reader import read_sample
from experiments.dense.nyud import official
from experiments.dense.nyud.layouts import open_nyud

COPIES = {"InvPT": invpt_copy, "MTI-Net": mti_copy, "ASTMT": astmt_copy}
ALL = ("semseg", "depth", "normals", "edges")


def expected_classes(labels: np.ndarray) -> np.ndarray:
    return np.where(labels == 0, 255, labels.astype(int) - 1)


@pytest.mark.parametrize("copy", COPIES)
def test_each_layout_is_told_by_its_files_and_gives_what_they_hold(copy, tmp_path):
    root = COPIES[copy](tmp_path / "some" / "name")
    reader = open_nyud(tmp_path / "some")  # the folder around it does, too
    assert copy in reader.layout
    assert reader.root == root
    assert reader.splits == {"train": TRAIN, "test": TEST}
    assert reader.tasks == ALL
    sample = read_sample(reader, "0002", ALL)
    height, width = sample["image"].shape[1:]
    of = maps("0002", height, width)
    np.testing.assert_array_equal(sample["semseg"], expected_classes(of["labels"]))
    assert sample["semseg"][0, :3].tolist() == [255, 0, 39]
    np.testing.assert_allclose(sample["depth"], of["depth"], rtol=1e-6)
    assert sample["depth"].dtype == torch.float32
    np.testing.assert_array_equal(sample["edges"], of["edges"])
    assert sample["image"].dtype == torch.uint8
    assert sample["normals"].shape == (3, height, width)


def test_pictures_are_exact_where_they_are_stored_without_loss(tmp_path):
    reader = open_nyud(invpt_copy(tmp_path / "a"))
    of = maps("0001")
    np.testing.assert_array_equal(reader.read("0001", "image").permute(1, 2, 0), of["image"])
    # 2 v / 255 - 1 of (128, 128, 255)
    torch.testing.assert_close(reader.read("0001", "normals")[:, 0, 0], torch.tensor([1 / 255, 1 / 255, 1.0]))


def test_normals_as_numbers_keep_their_zero_vectors(tmp_path):
    normals = open_nyud(mti_copy(tmp_path / "b")).read("0003", "normals")
    np.testing.assert_allclose(normals[:, 0, 1], unit(maps("0003", 48, 64)["normals8"])[0, 1], rtol=1e-6)
    assert not normals[:, 2, 3].any()


def test_gray_normals_count_unless_told_otherwise(tmp_path):
    root = invpt_copy(tmp_path / "a")
    pixels = np.full((42, 56, 3), 128, np.uint8)
    pixels[0, 0] = (255, 128, 128)
    png(root / "normals/0001.png", pixels)
    assert open_nyud(root).read("0001", "normals").ne(0).any(0).all()
    strict = open_nyud(root, gray_normals="unknown").read("0001", "normals")
    assert strict.ne(0).any(0).sum() == 1


def test_the_official_file_has_its_axes_turned_and_its_labels_mapped(tmp_path):
    path = labeled_mat(tmp_path / "mat")
    for data in (path, path.parent, tmp_path):
        reader = open_nyud(data)
        assert reader.tasks == ("semseg", "depth")
    assert reader.splits == {"train": ("0001", "0003"), "test": ("0002",)}
    of = maps("0003", 48, 64)
    np.testing.assert_array_equal(reader.read("0003", "image").permute(1, 2, 0), of["image"])
    np.testing.assert_array_equal(reader.read("0003", "depth"), of["depth"])
    to_40 = official.class_of_label()
    np.testing.assert_array_equal(reader.read("0003", "semseg"), expected_classes(to_40[of["labels"].astype(int) * 20]))


def test_classes_beside_the_official_file_are_used(tmp_path):
    path = labeled_mat(tmp_path)
    mat(tmp_path / "classMapping40.mat", mapClass=np.full((1, 894), 7, np.uint8))
    assert set(open_nyud(path).read("0001", "semseg").unique().tolist()) == {6, 255}


def test_the_official_file_without_its_split_must_have_all_images(tmp_path):
    path = labeled_mat(tmp_path)
    (tmp_path / "splits.mat").unlink()
    with pytest.raises(DataError, match="3 images, 1449 are official"):
        open_nyud(path)


def test_the_inner_part_of_full_images(tmp_path):
    root = mti_copy(tmp_path / "b", 480, 640)
    inner, whole = open_nyud(root, border="crop"), open_nyud(root)
    assert inner.read("0001", "depth").shape == (425, 560)
    for of in ("image", *ALL):
        # rows 46 to 470 and columns 41 to 600, counted from 1
        assert torch.equal(inner.read("0001", of), whole.read("0001", of)[..., 45:470, 40:600])
    with pytest.raises(DataError, match="border='keep'"):
        open_nyud(invpt_copy(tmp_path / "a"), border="crop")


def test_the_official_split_and_classes():
    split = official.official_split()
    assert sorted(split["train"] + split["test"]) == [f"{number:04d}" for number in range(1, 1450)]
    assert (len(split["train"]), len(split["test"])) == (795, 654)
    assert split["test"][:8] == ("0001", "0002", "0009", "0014", "0015", "0016", "0017", "0018")
    to_40 = official.class_of_label()
    assert len(official.CLASSES) == 40
    assert (len(to_40), to_40[0], set(to_40[1:].tolist())) == (895, 0, set(range(1, 41)))


# --- what is no NYUD-v2, or a broken one ---


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_nyud(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no NYUD-v2.*NYUDv2\.tar\.gz"):
        open_nyud(tmp_path)


def test_files_of_two_layouts(tmp_path):
    root = invpt_copy(tmp_path)
    shutil.rmtree(root / "edge")
    npy(root / "edge/0001.npy", np.zeros((42, 56)))
    with pytest.raises(DataError, match=r"images/ of \.png.*edge/ of \.npy.*Do not mix"):
        open_nyud(root)


def test_two_copies_in_one_folder(tmp_path):
    invpt_copy(tmp_path / "one")
    mti_copy(tmp_path / "two")
    with pytest.raises(DataError, match="several data sets: one, two"):
        open_nyud(tmp_path)


def test_a_png_copy_of_full_size_is_refused(tmp_path):
    root = invpt_copy(tmp_path, 480, 640)
    with pytest.raises(DataError, match="480 x 640 where 425 x 560 is meant"):
        open_nyud(root)
    assert open_nyud(root, border="crop").read("0001", "semseg").shape == (425, 560)


def test_the_13_classes_are_refused(tmp_path):
    npy(tmp_path / "train/image/0.npy", np.zeros((288, 384, 3)))
    with pytest.raises(DataError, match="its suite is nyud13"):
        open_nyud(tmp_path)


def test_lists(tmp_path):
    root = invpt_copy(tmp_path)
    for train, test, said in (
        (("0001",), ("0001",), "'0001' is in 'train' and in 'test'"),
        (("0003", "0003"), TEST, "names '0003' 2 times"),
        (("../0003",), TEST, "no plain file name"),
        ((), TEST, "names no image"),
    ):
        lists(root, train, test)
        with pytest.raises(DataError, match=said):
            open_nyud(root)
    (root / "gt_sets/val.txt").unlink()
    lists_only = root / "gt_sets/train.txt"
    lists_only.write_text("0003\n")
    with pytest.raises(DataError, match=r"val\.txt is missing"):
        open_nyud(root)


@pytest.mark.parametrize(
    ("of", "spoil", "fault", "said"),
    [
        ("image", lambda path: path.write_bytes(path.read_bytes()[:-900]), "unreadable", "cannot be read as a PNG"),
        ("image", lambda path: path.write_bytes(b""), "unreadable", "cannot be read"),
        ("image", lambda path: jpeg(path, np.zeros((42, 56, 3), np.uint8)), "unreadable", "cannot be read as a PNG"),
        ("image", Path.unlink, "missing", "is missing"),
        (
            "semseg",
            lambda path: png(path, np.full((42, 56), 41, np.uint8)),
            "wrong",
            r"labels \[41\], but only 0 to 40",
        ),
        ("semseg", lambda path: png(path, np.zeros((42, 56, 3), np.uint8)), "wrong", "one channel of 8 bits"),
        (
            "semseg",
            lambda path: png(path, np.zeros((40, 56), np.uint8)),
            "wrong",
            "40 x 56, but its picture is 42 x 56",
        ),
        ("edges", lambda path: png(path, np.full((42, 56), 90, np.uint8)), "wrong", r"values \[90\], but only 0 and 1"),
        ("depth", lambda path: npy(path, np.full((42, 56), np.nan)), "wrong", "2352 depths that are not finite"),
        ("depth", lambda path: npy(path, np.full((42, 56), 2500.0)), "wrong", "but metres from 0 to 100"),
        ("depth", lambda path: npy(path, np.full((42, 56), -1.0)), "wrong", "but metres from 0 to 100"),
        ("depth", lambda path: npy(path, np.zeros((42, 56, 3))), "wrong", r"\(h, w\) of numbers is meant"),
        ("depth", lambda path: npy(path, np.array([{}], object)), "unreadable", "cannot be read as a NumPy array"),
        ("depth", lambda path: path.write_bytes(path.read_bytes()[:-8]), "unreadable", "cannot be read"),
        ("depth", lambda path: npy(path, np.zeros((42, 56), complex)), "unreadable", "real numbers"),
    ],
)
def test_a_spoilt_file_is_named(tmp_path, of, spoil, fault, said):
    reader = open_nyud(invpt_copy(tmp_path))
    path = reader.place("0003", of)
    spoil(path)
    with pytest.raises(DataError, match=said) as raised:
        read_sample(reader, "0003", ALL)
    assert raised.value.fault == fault
    assert raised.value.path == path
    assert str(path) in str(raised.value)


def test_huge_claims_are_not_decoded(tmp_path, monkeypatch):
    reader = open_nyud(invpt_copy(tmp_path))
    monkeypatch.setattr("experiments.dense.datasets.pictures.MOST_PIXELS", 100)
    with pytest.raises(DataError, match="claims 42 x 56 pixels, 100 are the most"):
        reader.read("0001", "image")
    monkeypatch.setattr("experiments.dense.datasets.arrays.MOST_PIXELS", 100)
    with pytest.raises(DataError, match="claims the shape"):
        reader.read("0001", "depth")
