"""The 13-class set in both of its forms, and that it is never taken for NYUD-v2 or the other way round."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from nyud13_copies import arrays, mtan_copy, parquet_copy
from nyud_copies import invpt_copy, npy

from experiments.dense import nyud13
from experiments.dense.datasets import InOrder, load
from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.reader import read_sample
from experiments.dense.nyud13 import Nyud13Choices
from experiments.dense.nyud13.layouts import open_nyud13

SMALL = (18, 24)
ALL = ("semseg", "depth", "normals")
COPIES = {"folders": mtan_copy, "parquet": parquet_copy}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("form", COPIES)
def test_both_forms_hold_the_same(form, tmp_path):
    root = COPIES[form](tmp_path / "data set" / "x", SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    reader = open_nyud13(root.parent, size=SMALL)
    assert form in reader.layout
    assert reader.tasks == ALL
    assert [len(names) for names in reader.splits.values()] == [3, 2]
    for split, own in (("train", "train"), ("test", "val")):
        for number, name in enumerate(reader.splits[split]):
            of, sample = arrays(own, number, SMALL), read_sample(reader, name, ALL)
            np.testing.assert_allclose(sample["image"].permute(1, 2, 0), of["image"] * 255, rtol=1e-6)
            np.testing.assert_array_equal(sample["semseg"], np.where(of["label"] < 0, 255, of["label"]))
            np.testing.assert_array_equal(sample["depth"], of["depth"][..., 0])
            np.testing.assert_allclose(sample["normals"].permute(1, 2, 0), of["normal"])
            assert sample["semseg"][0, :3].tolist() == [255, 0, 12]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_numbers_are_in_their_order_not_in_that_of_words(tmp_path):
    root = mtan_copy(tmp_path, SMALL)
    for number in (10, 11):
        for folder, values in arrays("train", number, SMALL).items():
            npy(root / f"train/{folder}/{number}.npy", values)
    names = open_nyud13(root, size=SMALL).splits["train"]
    assert names == ("train/0", "train/1", "train/2", "train/10", "train/11")


def test_parquet_is_unpacked_once_with_progress(tmp_path):
    root, seen = parquet_copy(tmp_path / "p", SMALL), []
    open_nyud13(root, size=SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(1, 6)]
    open_nyud13(root, size=SMALL, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 5
    kept = list((tmp_path / "cache/nyud13").iterdir())
    assert len(kept) == 1
    assert not kept[0].name.startswith(".")  # nothing half-done is left


def test_parquet_without_space_for_it(tmp_path, monkeypatch):
    root = parquet_copy(tmp_path / "p", SMALL)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="set DTME_CACHE to a folder with the space"):
        open_nyud13(root, size=SMALL)


def test_unpacking_that_fails_leaves_nothing(tmp_path):
    root = parquet_copy(tmp_path / "p", SMALL)
    with pytest.raises(DataError, match="holds a map of 1296 numbers, 3 x 288 x 384 are meant"):
        open_nyud13(root)
    assert not list((tmp_path / "cache/nyud13").iterdir())
    broken = next(root.rglob("val-00001*"))
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"val-00001.*cannot be read as parquet"):
        open_nyud13(root, size=SMALL)


@pytest.mark.parametrize("form", COPIES)
def test_a_suite(form, tmp_path):
    suite = nyud13.suite(COPIES[form](tmp_path, SMALL), Nyud13Choices(size=SMALL))
    assert suite.name == "nyud13"
    assert [(task.name, task.channels, task.weight) for task in suite.tasks] == [
        ("semseg", 13, 1.0),
        ("depth", 1, 1.0),
        ("normals", 3, 1.0),
    ]
    batch = suite.collate([suite.train[0], suite.train[3 - 1]])
    assert batch["image"].shape == (2, 3, *SMALL)
    for task in suite.tasks:
        assert task.loss(torch.randn(2, task.channels, *SMALL), batch[task.name]).isfinite()
    assert torch.equal(suite.test[1]["depth"], torch.from_numpy(arrays("val", 1, SMALL)["depth"][..., 0]))
    if form == "parquet":  # whose arrays are mapped anew in each process
        helped = list(load(suite.test, InOrder(2, 2), suite.collate, workers=1))
        assert torch.equal(helped[0]["depth"][1], suite.test[1]["depth"])


def test_pixels_from_0_to_1_on_request(tmp_path):
    suite = nyud13.suite(
        mtan_copy(tmp_path, SMALL), Nyud13Choices(size=SMALL, normalisation="none", augmentation="none")
    )
    np.testing.assert_allclose(suite.train[0]["image"].permute(1, 2, 0), arrays("train", 0, SMALL)["image"], atol=1e-6)


def test_images_labelled_in_part(tmp_path):
    root = mtan_copy(tmp_path, SMALL)
    (root / "train/label/1.npy").unlink()
    with pytest.raises(DataError, match=r"label/1\.npy is missing"):
        nyud13.suite(root, Nyud13Choices(size=SMALL)).train[1]
    suite = nyud13.suite(root, Nyud13Choices(size=SMALL, missing="leave_out"))
    assert "semseg" not in suite.train[1]
    assert suite.collate([suite.train[0], suite.train[1]])["semseg"][1].eq(255).all()


def test_another_size_is_another_benchmark(tmp_path):
    with pytest.raises(DataError, match="but the images of this benchmark are 288 x 384"):
        open_nyud13(mtan_copy(tmp_path, SMALL))
    assert open_nyud13(mtan_copy(tmp_path / "whole")).read("val/0", "semseg").shape == (288, 384)


def test_40_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"looks like NYUD-v2 with 40 classes: that is the suite nyud\."):
        open_nyud13(invpt_copy(tmp_path / "a"))
    root = mtan_copy(tmp_path / "b", SMALL)
    npy(root / "train/label/0.npy", np.full(SMALL, 39))
    with pytest.raises(DataError, match=r"values from 39 to 39.*Labels of 40 classes belong to another"):
        open_nyud13(root, size=SMALL).read("train/0", "semseg")
    with pytest.raises(DataError, match=r"neither train/image/\*\.npy nor train-\*\.parquet"):
        open_nyud13(tmp_path / "a/images", size=SMALL)


@pytest.mark.parametrize(
    ("of", "values", "said"),
    [
        ("image", np.full((*SMALL, 3), 200.0), "no image"),
        ("image", np.zeros((3, *SMALL)), "no image"),
        ("image", np.zeros((0, 0, 3)), "it is empty"),
        ("label", np.full(SMALL, 1.5), "no labels"),
        ("label", np.full(SMALL, np.nan), "no labels"),
        ("depth", np.full((*SMALL, 1), np.nan), "not finite"),
        ("depth", np.zeros(SMALL), "no depth"),
        ("normal", np.full((*SMALL, 3), np.inf), "not finite"),
        ("normal", np.zeros(SMALL), "no normals"),
        ("normal", np.full((*SMALL, 3), 2.0), "unit vectors"),
    ],
)
def test_a_spoilt_file_is_named(tmp_path, of, values, said):
    root = mtan_copy(tmp_path, SMALL)
    reader = open_nyud13(root, size=SMALL)
    npy(root / f"train/{of}/0.npy", values)
    with pytest.raises(DataError, match=said) as raised:
        read_sample(reader, "train/0", ALL)
    assert f"{of}/0.npy" in str(raised.value)
