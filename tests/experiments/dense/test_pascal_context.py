"""PASCAL-Context: what its files say, worked out by hand, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from nyud_copies import mat, png
from pascal_copies import PEOPLE, TEST, TRAIN, annotation, blank, pascal_copy, semseg, thing

from experiments.dense import pascal_context
from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.reader import read_sample
from experiments.dense.pascal_context import PascalChoices, official
from experiments.dense.pascal_context.layout import open_pascal
from experiments.dense.pascal_context.people import with_people
from experiments.dense.pascal_context.targets import read_edges, read_regions

ALL = ("semseg", "parts", "saliency", "normals", "edges")


@pytest.fixture
def copy(tmp_path):
    return pascal_copy(tmp_path / "any name")


def test_every_map(copy):
    reader = open_pascal(copy.parent)
    assert reader.splits == {"train": TRAIN, "test": TEST}
    assert reader.tasks == ALL
    sample = read_sample(reader, TEST[1], ALL)
    np.testing.assert_array_equal(sample["semseg"], semseg(TEST[1], (30, 50)))
    assert sample["semseg"][0, :3].tolist() == [0, 20, 255]
    assert {of: tuple(each.shape) for of, each in sample.items()} == {
        "image": (3, 30, 50),
        "semseg": (30, 50),
        "parts": (30, 50),
        "saliency": (30, 50),
        "normals": (3, 30, 50),
        "edges": (30, 50),
    }


def test_the_map_of_voc_is_preferred(copy):
    assert open_pascal(copy).read(TEST[0], "semseg").unique().tolist() == [7]
    shutil.rmtree(copy / "semseg/pascal-context")
    reader = open_pascal(copy)
    assert reader.read(TEST[0], "semseg").unique().tolist() == [7]
    assert not reader.has(TEST[1], "semseg")


def test_parts_of_people_alone_with_later_over_earlier(copy):
    parts = open_pascal(copy).read(PEOPLE[0], "parts")
    expected = torch.zeros(30, 50, dtype=torch.uint8)
    expected[2:8, 3:9] = 1  # head
    expected[6:10, 3:9] = 6  # a foot belongs to the lower legs, and was named later
    assert torch.equal(parts, expected)
    assert not open_pascal(copy).read(TEST[1], "parts").any()


def test_parts_without_people_are_unknown_once_transformed(copy):
    suite = pascal_context.suite(copy)
    assert suite.test[1]["parts"].eq(255).all()
    with_parts = suite.test[0]["parts"]
    assert with_parts[241:271, 231:281].unique().tolist() == [0, 1, 6]  # padding: (512 - 30) / 2, (512 - 50) / 2
    assert with_parts[:241].eq(255).all()


def test_saliency_begins_above_the_middle(copy):
    pixels = np.zeros((30, 50), np.uint8)
    pixels[0, :4] = (0, 127, 128, 255)
    png(copy / f"sal_distill/{TEST[0]}.png", pixels)
    assert open_pascal(copy).read(TEST[0], "saliency")[0, :4].tolist() == [0, 0, 1, 1]


def test_normals_count_on_the_classes_that_nyud_knows(copy):
    normals = open_pascal(copy).read(TEST[0], "normals")
    assert normals[:, :, :25].ne(0).any(0).all()  # a person
    assert not normals[:, :, 25:].any()  # an aeroplane


def test_which_classes_have_normals():
    counts = official.normals_count()
    assert counts.sum() == 171  # 170 names in common, and tvmonitor
    named = {284: True, 440: True, 158: True, 59: True, 113: True, 65: True, 427: True, 2: False, 0: False}
    assert {number: bool(counts[number]) for number in named} == named


def test_edges_of_two_regions_are_one_line(tmp_path):
    labels = np.full((9, 12), 3, np.uint16)
    labels[:, 6:] = 440
    mat(tmp_path / "a.mat", LabelMap=labels)
    edges = read_edges(tmp_path / "a.mat")
    # Both sides of the border have a Laplacian; thinning leaves one pixel of the two, and one fewer at an end.
    assert set(edges.nonzero()[:, 1].tolist()) <= {5, 6}
    assert edges.sum(1).max() == 1
    assert edges.sum() in (8, 9)
    assert read_edges(tmp_path / "a.mat").dtype == torch.uint8


def test_edges_of_classes_without_a_name_count_too(tmp_path):
    labels = np.zeros((8, 8), np.uint16)
    labels[:, 4:] = 459
    mat(tmp_path / "a.mat", LabelMap=labels)
    assert read_edges(tmp_path / "a.mat").any()
    mat(tmp_path / "b.mat", LabelMap=np.full((8, 8), 5, np.uint8))
    assert not read_edges(tmp_path / "b.mat").any()


def test_what_is_official():
    assert len(official.CLASSES) == 21
    assert len(official.PARTS) == 7
    assert len(official.PART_OF) == 24
    assert set(official.PART_OF.values()) == set(range(1, 7))
    with pytest.raises(ValueError, match="not the official 5105"):
        official.boundary_images(TEST)


def test_a_suite_of_the_papers_shape(copy):
    suite = pascal_context.suite(copy)
    assert [(task.name, task.channels, task.weight) for task in suite.tasks] == [
        ("semseg", 21, 1),
        ("parts", 7, 2),
        ("saliency", 1, 5),
        ("normals", 3, 10),
        ("edges", 1, 50),
    ]
    assert suite.size == (512, 512)
    for sample in (suite.train[0], suite.test[0]):
        assert {tuple(sample[of].shape[-2:]) for of in ("image", *ALL)} == {(512, 512)}
    small = pascal_context.suite(copy, PascalChoices(size=(32, 64), augmentation="mti"))
    batch = small.collate([small.train[0], small.train[1]])
    for task in small.tasks:
        prediction = torch.randn(2, task.channels, 32, 64)
        assert task.loss(prediction, batch[task.name]).isfinite()


def test_the_data_is_never_written_to(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    suite = pascal_context.suite(copy, PascalChoices(tasks=("parts",)))
    _ = suite.train[0]
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


# --- what edges are measured on ---


def test_regions_are_apart_where_they_do_not_touch(tmp_path):
    labels = np.zeros((20, 40), np.uint16)
    labels[::2] = 284  # rows of one class, apart from each other
    labels[1, 0] = 284  # joins the first two
    mat(tmp_path / "a.mat", LabelMap=labels)
    regions = read_regions(tmp_path / "a.mat")
    assert regions[0, 5] == regions[2, 5] != regions[4, 5]
    assert len(regions.unique()) == 19
    many = np.indices((20, 40)).sum(0) % 2 + 1  # a chessboard: each pixel a region of its own
    mat(tmp_path / "b.mat", LabelMap=many.astype(np.uint16))
    numbers = read_regions(tmp_path / "b.mat").unique()
    assert len(numbers) == 800
    assert 255 not in numbers


def test_edges_are_measured_on_regions_of_some_images(copy, monkeypatch):
    module = sys.modules["experiments.dense.pascal_context.suite"]  # whose name is also that of its function
    monkeypatch.setattr(module, "boundary_images", lambda test: (TEST[1],))
    suite = pascal_context.suite(copy, PascalChoices(edge_protocol="invpt"))
    edges = suite.tasks[-1]
    assert (edges.measured_on, edges.meter_options) == ("regions", {"tolerance": 0.0075, "protocol": "invpt"})
    assert "regions" not in suite.train[0]
    assert "regions" not in suite.test[0]
    inside = suite.test[1]["regions"][241:271, 231:281]
    assert (inside[:, 0] == inside[0, 0]).all()
    assert inside.unique().numel() == 2
    batch = suite.collate([suite.test[0], suite.test[1]])
    assert batch["regions"][0].eq(255).all()
    assert batch["regions"][1].eq(255).sum() == 512 * 512 - 30 * 50
    turned = pascal_context.suite(copy, PascalChoices(edge_protocol="invpt", augmentation="mti", size=(60, 100)))
    assert turned.test[1]["regions"].dtype == torch.int32
    assert turned.test[1]["regions"].unique().numel() == 2


def test_only_the_official_list_knows_which_images_count(copy):
    with pytest.raises(ValueError, match="not the official 5105"):
        pascal_context.suite(copy, PascalChoices(edge_protocol="invpt"))


# --- images with people alone ---


def test_the_single_task_of_parts_on_people_alone(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path / "cache"))
    before = set(copy.rglob("*"))
    chosen = PascalChoices(tasks=("parts",), parts_images="with_people")
    for _ in range(2):  # found out, then from the cache
        suite = pascal_context.suite(copy, chosen)
        assert (suite.train.names, suite.test.names) == (("2008_000008",), ("2008_000002",))
    assert set(copy.rglob("*")) == before
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 2
    both = pascal_context.suite(copy, PascalChoices(tasks=("parts", "semseg"), parts_images="with_people"))
    assert len(both.train) == 2  # it is about the single task alone


def test_lists_that_the_fields_readers_left_are_believed(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path / "cache"))
    reader = open_pascal(copy)
    path = copy / "ImageSets/Parts/train.txt"
    path.parent.mkdir()
    path.write_text(json.dumps({TRAIN[0]: [9, -1], TRAIN[1]: [15]}))
    assert with_people(reader, TRAIN) == (TRAIN[1],)
    path.write_text('{"2008_0000')  # half-written
    assert with_people(reader, TRAIN) == (TRAIN[0],)


# --- what is refused ---


def test_something_else(tmp_path):
    with pytest.raises(DataError, match=r"no PASCAL-Context.*PASCALContext\.tar\.gz"):
        open_pascal(tmp_path)


def test_a_copy_without_distilled_labels_has_fewer_tasks(copy):
    shutil.rmtree(copy / "normals_distill")
    shutil.rmtree(copy / "sal_distill")
    with pytest.raises(ValueError, match="says nothing of saliency, normals"):
        pascal_context.suite(copy)
    some = pascal_context.suite(copy, PascalChoices(tasks=("semseg", "parts", "edges")))
    assert [task.name for task in some.tasks] == ["semseg", "parts", "edges"]


@pytest.mark.parametrize(
    ("of", "spoil", "fault", "said"),
    [
        (
            "semseg",
            lambda path: png(path, np.full((30, 50), 21, np.uint8)),
            "wrong",
            r"labels \[21\], but only 0 to 20 are",
        ),
        ("edges", lambda path: mat(path, LabelMap=np.full((30, 50), 460)), "wrong", "0 to 459 are meant"),
        ("edges", lambda path: mat(path, Other=np.zeros((30, 50))), "wrong", r"\['Other'\], but not 'LabelMap'"),
        ("edges", lambda path: path.write_bytes(path.read_bytes()[:150]), "unreadable", "MATLAB"),
        ("edges", lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file" + bytes(600)), "unreadable", "MATLAB"),
        ("edges", lambda path: path.write_bytes(b""), "unreadable", "MATLAB"),
        ("parts", lambda path: mat(path, anno=np.zeros((2, 2))), "unreadable", "annotation of PASCAL-Part"),
        (
            "parts",
            lambda path: annotation(path, "x", [thing("person", 15, blank((9, 9)), [("wing", blank((30, 50)))])]),
            "wrong",
            "part 'wing'",
        ),
        (
            "parts",
            lambda path: annotation(path, "x", [thing("person", 15, blank((9, 9)), [("head", blank((9, 9)))])]),
            "wrong",
            r"of \(9, 9\)",
        ),
    ],
)
def test_a_spoilt_file_is_named(copy, of, spoil, fault, said):
    reader = open_pascal(copy)
    path = reader.place(TRAIN[0], of)
    spoil(path)
    with pytest.raises(DataError, match=said) as raised:
        read_sample(reader, TRAIN[0], ALL)
    assert (raised.value.fault, raised.value.path) == (fault, path)


def test_normals_beside_classes_of_another_size(copy):
    mat(copy / f"pascal-context/trainval/{TEST[0]}.mat", LabelMap=np.zeros((4, 4)))
    with pytest.raises(DataError, match="is \\(4, 4\\), but its normals are"):
        open_pascal(copy).read(TEST[0], "normals")


def test_pictures_larger_than_the_padding(tmp_path):
    with pytest.raises(ValueError, match=r"do not fit into size=\(512, 512\)"):
        pascal_context.suite(pascal_copy(tmp_path, (30, 600))).test[0]
