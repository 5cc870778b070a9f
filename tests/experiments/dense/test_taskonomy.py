"""Taskonomy: pairing by building, point and view, holes, official lists, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from nyud_copies import png
from taskonomy_copies import BUILDINGS, DOMAINS, hole, path_of, splits_csv, stored, taskonomy_copy

from experiments.dense import taskonomy
from experiments.dense.datasets import InOrder, load
from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.reader import read_sample
from experiments.dense.taskonomy import TaskonomyChoices
from experiments.dense.taskonomy.reader import open_taskonomy
from experiments.dense.taskonomy.splits import COUNTS, TINY, WITHHELD, buildings_of, counted, read_buildings

ELEVEN = DOMAINS[1:]
SCANNED = {"depth_euclidean", "depth_zbuffer", "edge_occlusion", "keypoints3d", "normal"} | {
    "principal_curvature",
    "reshading",
    "segment_unsup25d",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return taskonomy_copy(tmp_path_factory.mktemp("whole") / "some name")


@pytest.fixture
def copy(shared, tmp_path):
    """A copy that may be spoilt."""
    return shutil.copytree(shared, tmp_path / "data")


# --- reading ---


@pytest.mark.parametrize("form", ["omnidata", "buildings", "flat"])
def test_each_form_gives_every_domain(form, tmp_path):
    root = taskonomy_copy(tmp_path / "x" / "y", form)
    reader = open_taskonomy(root.parent)
    assert reader.tasks == ELEVEN
    assert set(reader.buildings) == {"hanson", "merom", "wiconisco", "ihlen"}
    sample = read_sample(reader, "merom/2/1", ELEVEN)
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), stored("rgb", "merom", 2, 1))
    for domain in ELEVEN:
        of, made = stored(domain, "merom", 2, 1), sample[domain].numpy()
        of = of.transpose(2, 0, 1) if of.ndim == 3 else of[None]
        unknown = np.broadcast_to(hole("merom") & (domain in SCANNED), of.shape)
        np.testing.assert_array_equal(np.isnan(made), unknown)
        np.testing.assert_array_equal(made[~unknown], of[~unknown])


def test_forms_are_read_together(tmp_path):
    root = taskonomy_copy(tmp_path, "omnidata", domains=("rgb", "normal"))
    taskonomy_copy(root, "flat", domains=("reshading",))
    old = path_of(root, "buildings", "depth", "hanson", 0, 0)  # the name that old downloads have
    png(old, stored("depth_zbuffer", "hanson", 0, 0))
    reader = open_taskonomy(root)
    assert reader.tasks == ("depth_zbuffer", "normal", "reshading")
    assert reader.place("hanson/0/0", "depth_zbuffer") == old
    assert reader.has("hanson/2/1", "reshading")
    assert not reader.has("hanson/2/1", "depth_zbuffer")
    assert reader.read("hanson/0/0", "normal").isnan().any()  # the hole of the one depth that is there
    assert not reader.read("hanson/2/1", "normal").isnan().any()  # without a depth nothing is known of holes


def test_names_that_say_nothing_are_told(copy):
    png(copy / "normal/taskonomy/hanson/point_1_view_domain_normal.png", np.zeros((2, 2), np.uint8))
    png(copy / "rgb/taskonomy/hanson/point_01_view_0_domain_rgb.png", np.zeros((2, 2), np.uint8))
    png(copy / "normal/taskonomy/hanson/point_1_view_0_domain_rgb.png", np.zeros((2, 2), np.uint8))
    assert {path.name for path in open_taskonomy(copy).listing.strange} == {
        "point_1_view_domain_normal.png",
        "point_01_view_0_domain_rgb.png",
        "point_1_view_0_domain_rgb.png",
    }
    assert not open_taskonomy(copy).has("hanson/1/0", "normal")


def test_pairs_are_by_name_and_not_by_place(copy):
    path_of(copy, "omnidata", "normal", "hanson", 0, 0).unlink()
    suite = taskonomy.suite(copy)
    assert suite.train.names == ("hanson/2/1", "hanson/10/0", "merom/0/0", "merom/2/1", "merom/10/0")
    sample = suite.train.stored(0)
    np.testing.assert_array_equal(
        sample["normal"][0][~hole("hanson")], stored("normal", "hanson", 2, 1)[..., 0][~hole("hanson")]
    )
    assert suite.choices["train"] == "5 images; 1 left out for want of a domain"


def test_the_data_is_never_written_to(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    _ = taskonomy.suite(copy).train[0]
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


# --- lists of buildings ---


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_official_lists_have_the_line_ends_of_old_macs(tmp_path, end):
    splits_csv(tmp_path / "a.csv", end=end)
    assert read_buildings(tmp_path / "a.csv") == BUILDINGS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "id,train,val,test is meant"),
        ("building,point,view\ra,1,2\r", "id,train,val,test is meant"),
        ("id,train,val,test\ra,1,1,0\r", "named once, with a 1 under one split"),
        ("id,train,val,test\ra,0,0,0\r", "named once, with a 1 under one split"),
        ("id,train,val,test\ra,1,0,0\ra,0,1,0\r", "named once"),
        ("id,train,val,test\r../a,1,0,0\r", "named once"),
    ],
)
def test_other_lists_are_refused(tmp_path, text, said):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    with pytest.raises(DataError, match=said):
        read_buildings(path)


def test_tiny_is_known_and_the_others_are_asked_for(tmp_path):
    assert buildings_of(tmp_path, "tiny") == TINY
    assert counted(TINY) == COUNTS["tiny"] == (25, 5, 5)
    assert "ihlen" in TINY["test"]
    assert "woodbine" in TINY["train"]
    assert "wiconisco" in TINY["val"]
    assert len({name for own in TINY.values() for name in own}) == 35
    with pytest.raises(DataError, match=r"train_val_test_medium\.csv is missing.*splits_taskonomy\.zip"):
        buildings_of(tmp_path, "medium")


# --- suites ---


def test_a_suite_of_the_papers_shape(shared):
    suite = taskonomy.suite(shared, TaskonomyChoices(size=(32, 32)))
    assert [task.name for task in suite.tasks] == list(ELEVEN)
    assert [task.channels for task in suite.tasks] == [1, 1, 1, 1, 1, 1, 3, 2, 1, 1, 1]
    assert {task.weight for task in suite.tasks} == {1.0}
    assert [len(split) for split in (suite.train, suite.test)] == [6, 3]
    assert suite.val is not None
    assert len(suite.val) == 3
    batch = suite.collate([suite.train[0], suite.train[1]])
    for task in suite.tasks:
        assert batch[task.name].shape == (2, task.channels, 32, 32)
        prediction = torch.randn(2, task.channels, 32, 32, requires_grad=True)
        loss = task.loss(prediction, batch[task.name])
        loss.backward()
        assert loss.isfinite()
        assert prediction.grad is not None
        assert prediction.grad.isfinite().all()
    assert batch["image"].min() >= -1
    assert batch["image"].max() <= 1


def test_workers_change_nothing(shared):
    suite = taskonomy.suite(shared, TaskonomyChoices(tasks=("normal", "depth_euclidean"), size=(32, 32)))
    alone, helped = (list(load(suite.train, InOrder(6, 3), suite.collate, workers=workers)) for workers in (0, 1))
    for one, two in zip(alone, helped, strict=True):
        assert one["names"] == two["names"]
        assert torch.equal(one["normal"].nan_to_num(9), two["normal"].nan_to_num(9))


def test_training_on_val_too(shared):
    suite = taskonomy.suite(shared, TaskonomyChoices(train_on="train+val", tasks=("normal",)))
    assert len(suite.train) == 9
    assert suite.val is None
    assert "and of val: 3 images" in suite.choices["train"]


def test_the_authors_protocol(shared):
    suite = taskonomy.suite(shared, TaskonomyChoices(protocol="sel", size=(32, 32)))
    assert len(suite.train) == 9
    assert suite.test.names == ("ihlen/0/0",)  # a tenth of 3, at least one
    assert suite.train.names[:3] == ("hanson/0/0", "hanson/10/0", "hanson/2/1")  # as file names are sorted
    sample = suite.test[0]
    assert sample["reshading"].shape == (3, 32, 32)
    assert not any(sample[task].isnan().any() for task in ELEVEN)
    depth = sample["depth_euclidean"]
    assert depth[0, 4:6, 8:10].min() > 0.95  # holes are 65535, and bleed
    with pytest.raises(ValueError, match="knows nothing unknown"):
        taskonomy.suite(shared, TaskonomyChoices(protocol="sel", missing="leave_out"))


def test_losses_and_meters(shared):
    of = {task.name: task for task in taskonomy.suite(shared).tasks}
    l1 = taskonomy.suite(shared, TaskonomyChoices(tasks=("normal",), normals_loss="l1")).tasks[0]
    assert of["normal"].loss.__name__ == "cosine_loss"
    assert l1.loss.__name__ == "l1_loss"
    assert of["principal_curvature"].metric_name == "RMSE"
    assert {task.metric_name for name, task in of.items() if name != "principal_curvature"} == {"L1"}


# --- images that are labelled in part ---


def test_pictures_that_only_some_domains_know(copy):
    path_of(copy, "omnidata", "normal", "hanson", 0, 0).unlink()
    chosen = TaskonomyChoices(missing="leave_out", tasks=("normal", "reshading"), size=(32, 32))
    suite = taskonomy.suite(copy, chosen)
    assert len(suite.train) == 6
    assert set(suite.train[0]) == {"image", "reshading", "name"}
    batch = suite.collate([suite.train[0], suite.train[1]])
    assert batch["normal"][0].isnan().all()
    task = suite.tasks[0]
    prediction = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        task.loss(prediction, batch["normal"]), task.loss(prediction[1:], suite.train[1]["normal"][None])
    )


def test_a_building_that_lacks_a_domain(copy):
    shutil.rmtree(copy / "normal/taskonomy/merom")
    with pytest.raises(DataError, match="merom has no normal, in the train split"):
        taskonomy.suite(copy)
    assert len(taskonomy.suite(copy, TaskonomyChoices(tasks=("reshading",))).train) == 6
    assert len(taskonomy.suite(copy, TaskonomyChoices(missing="leave_out")).train) == 6
    shutil.rmtree(copy / "normal/taskonomy/hanson")
    with pytest.raises(DataError, match="none of 6 training images has a normal"):
        taskonomy.suite(copy, TaskonomyChoices(missing="leave_out"))


def test_buildings_that_are_not_there(copy):
    splits_csv(copy / "splits_taskonomy/train_val_test_tiny.csv", BUILDINGS | {"train": ("hanson", "merom", "onaga")})
    with pytest.raises(DataError, match=r"no pictures of onaga, which the train split names.*absent='leave_out'"):
        taskonomy.suite(copy)
    suite = taskonomy.suite(copy, TaskonomyChoices(absent="leave_out"))
    assert suite.choices["train"] == "6 images; without onaga"
    splits_csv(copy / "splits_taskonomy/train_val_test_tiny.csv", BUILDINGS | {"train": ("hanson", "woodbine")})
    assert "woodbine" in WITHHELD
    assert taskonomy.suite(copy).choices["train"] == "3 images; without woodbine"  # nobody is given it


def test_val_is_needed_only_by_who_uses_it(copy):
    for domain in DOMAINS:
        shutil.rmtree(copy / domain / "taskonomy/wiconisco")
    suite = taskonomy.suite(copy)
    assert suite.val is None
    assert "no pictures of wiconisco" in suite.choices["val"]
    with pytest.raises(DataError, match="wiconisco"):
        taskonomy.suite(copy, TaskonomyChoices(train_on="train+val"))


def test_what_is_corrupt_for_everybody_is_left_out(copy):
    splits_csv(copy / "splits_taskonomy/train_val_test_tiny.csv", BUILDINGS | {"test": ("muleshoe",)})
    for domain in DOMAINS:
        for point, view in ((399, 5), (399, 6)):
            path = path_of(copy, "omnidata", domain, "muleshoe", point, view)
            png(path, stored(domain, "muleshoe", point, view))
    path_of(copy, "omnidata", "rgb", "muleshoe", 399, 5).write_bytes(b"\x89PNG")
    suite = taskonomy.suite(copy)
    assert suite.test.names == ("muleshoe/399/6",)
    assert suite.choices["test"] == "1 images; 1 known to be corrupt left out"


# --- what is refused ---


def test_something_else(tmp_path):
    with pytest.raises(DataError, match=r"no Taskonomy.*omnitools"):
        open_taskonomy(tmp_path)
    (tmp_path / "rgb").mkdir()
    (tmp_path / "normal").mkdir()
    with pytest.raises(DataError, match="without pictures"):
        open_taskonomy(tmp_path)


@pytest.mark.parametrize(
    ("domain", "pixels", "said"),
    [
        ("depth_euclidean", np.zeros((64, 64), np.uint8), "one channel of 16 bits are meant"),
        ("normal", np.zeros((64, 64), np.uint16), "three channels of 8 bits are meant"),
        ("segment_unsup2d", np.zeros((64, 64, 3), np.uint8), "one channel of 8 bits are meant"),
        ("normal", np.zeros((32, 64, 3), np.uint8), "but its depth is"),
        ("edge_texture", np.zeros((32, 64), np.uint16), "but its picture is"),
    ],
)
def test_a_map_of_another_kind_is_named(copy, domain, pixels, said):
    path = path_of(copy, "omnidata", domain, "hanson", 0, 0)
    png(path, pixels)
    with pytest.raises(DataError, match=said) as raised:
        taskonomy.suite(copy).train.stored(0)
    assert raised.value.path == path


def test_a_truncated_file_is_skipped_on_request(copy):
    path = path_of(copy, "omnidata", "reshading", "hanson", 0, 0)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(DataError, match="cannot be read as a PNG"):
        taskonomy.suite(copy).train[0]
    sample = taskonomy.suite(copy, TaskonomyChoices(unreadable="skip")).train[0]
    assert "reshading" not in sample
    assert "hanson" in sample["skipped"]
