"""Samples by number, batches of images that are labelled in part, and an order that depends on the seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nyud_copies import invpt_copy, labeled_mat, mti_copy, npy

from experiments.dense import nyud
from experiments.dense.datasets import Collate, DataError, EpochBatches, InOrder, labelled_tasks, load
from experiments.dense.datasets.extras import imported
from experiments.dense.invpt import losses as invpt_losses
from experiments.dense.nyud import NyudChoices


@pytest.fixture
def copy(tmp_path) -> Path:
    return invpt_copy(tmp_path / "NYUDv2")


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_suite_of_the_papers_shape(copy):
    before = files_of(copy)
    suite = nyud.suite(copy)
    assert [task.name for task in suite.tasks] == ["semseg", "depth", "normals", "edges"]
    assert [task.channels for task in suite.tasks] == [40, 1, 3, 1]
    assert [task.weight for task in suite.tasks] == [1, 1, 10, 50]
    assert suite.size == (48, 64)  # 42 x 56, as patches tile it
    assert (len(suite.train), len(suite.test)) == (2, 2)
    for split in (suite.train, suite.test):
        sample = split[1]
        assert set(sample) == {"image", "semseg", "depth", "normals", "edges", "name"}
        assert sample["image"].shape == (3, 48, 64)
        assert sample["semseg"].shape == sample["depth"].shape == sample["edges"].shape == (48, 64)
    assert files_of(copy) == before
    assert suite.choices["loss_weights"] == "invpt"
    assert suite.choices["layout"].startswith("NYUDv2")
    assert suite.choices["tasks"] == "semseg, depth, normals, edges"


def test_the_papers_size_is_padded(tmp_path):
    suite = nyud.suite(invpt_copy(tmp_path, 425, 560, names=("0001", "0003")))
    assert suite.size == (448, 576)
    sample = suite.test[0]
    assert sample["semseg"].shape == (448, 576)
    assert sample["semseg"][:11].eq(255).all()
    assert sample["depth"][:, :8].eq(0).all()


def test_full_images_need_no_padding(tmp_path):
    assert nyud.suite(mti_copy(tmp_path, 480, 640)).size == (480, 640)


def test_choices_change_the_suite(copy):
    chosen = nyud.suite(
        copy, NyudChoices(tasks=("edges", "depth"), loss_weights="ones", edge_weight=0.8, size=(64, 64))
    )
    assert [task.name for task in chosen.tasks] == ["depth", "edges"]
    assert {task.weight for task in chosen.tasks} == {1.0}
    logit, edge = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1)
    assert chosen.tasks[1].loss(logit, edge).item() == pytest.approx(0.8 * np.log(2))
    assert chosen.train[0]["image"].shape == (3, 64, 64)
    resized = nyud.suite(copy, NyudChoices(augmentation="mti"))
    assert resized.test[0]["image"].shape == (3, 48, 64)
    assert torch.linalg.vector_norm(resized.test[0]["normals"], dim=0).allclose(torch.ones(48, 64))
    with pytest.raises(ValueError, match="no 'parts' among"):
        nyud.suite(copy, NyudChoices(tasks=("parts",)))
    with pytest.raises(ValueError, match=r"edge_weight=1\.5"):
        NyudChoices(edge_weight=1.5)


def test_tasks_that_a_layout_does_not_have(tmp_path):
    path = labeled_mat(tmp_path)
    with pytest.raises(ValueError, match=r"says nothing of normals, edges: choose.*tasks=\('semseg', 'depth'\)"):
        nyud.suite(path)
    assert [task.name for task in nyud.suite(path, NyudChoices(tasks=("semseg", "depth"))).tasks] == ["semseg", "depth"]


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(one[key], two[key]) if isinstance(one[key], torch.Tensor) else one[key] == two[key] for key in one
    )


def test_chance_depends_on_seed_epoch_and_number_alone(copy):
    one, again, other = (nyud.suite(copy, seed=seed).train for seed in (0, 0, 1))
    _ = one[1], one[7, 0]
    assert same(one[0], again[0, 0])
    assert not torch.equal(one[0]["image"], one[1, 0]["image"])
    assert not torch.equal(one[0]["image"], other[0]["image"])
    with pytest.raises(IndexError):
        one[2]


@pytest.mark.parametrize("written", [invpt_copy, labeled_mat])
def test_workers_change_nothing(written, tmp_path):
    suite = nyud.suite(written(tmp_path), NyudChoices(tasks=("semseg", "depth")))
    order = EpochBatches(2, 2, steps=3, seed=5)
    alone = list(load(suite.train, order, suite.collate))
    helped = list(load(suite.train, order, suite.collate, workers=2))
    assert len(alone) == 3
    assert all(same(one, two) for one, two in zip(alone, helped, strict=True))


def test_an_error_in_a_worker_keeps_its_name(copy):
    suite = nyud.suite(copy)
    (copy / "images/0001.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"0001\.png cannot be read"):
        list(load(suite.test, InOrder(2, 1), suite.collate, workers=1))


def test_order_of_processes_together_is_that_of_one():
    whole = list(EpochBatches(11, 4, steps=6, seed=3))
    parts = [list(EpochBatches(11, 4, steps=6, seed=3, rank=rank, processes=2)) for rank in (0, 1)]
    assert whole == [one + two for one, two in zip(*parts, strict=True)]
    for epoch in range(3):
        seen = [index for batch in whole for of, index in batch if of == epoch]
        assert len(seen) == len(set(seen)) == 8
    assert list(EpochBatches(11, 4, steps=6, seed=4)) != whole
    with pytest.raises(ValueError, match="batch=12: the split holds 11"):
        EpochBatches(11, 12, steps=1, seed=0)
    with pytest.raises(ValueError, match="no equal part"):
        EpochBatches(11, 4, steps=1, seed=0, processes=3)


def test_every_image_is_measured_once():
    seen = [index for rank in range(3) for batch in InOrder(10, 2, rank=rank, processes=3) for _, index in batch]
    assert sorted(seen) == list(range(10))


# --- images that are labelled in part ---


def test_a_target_that_is_not_there(copy):
    (copy / "segmentation/0001.png").unlink()
    with pytest.raises(DataError, match=r"segmentation/0001\.png is missing.*leave_out"):
        nyud.suite(copy).test[0]
    suite = nyud.suite(copy, NyudChoices(missing="leave_out"))
    assert set(suite.test[0]) == {"image", "depth", "normals", "edges", "name"}
    batch = suite.collate([suite.test[0], suite.test[1]])
    assert batch["semseg"][0].eq(255).all()
    assert torch.equal(batch["semseg"][1], suite.test[1]["semseg"])
    alone = suite.collate([suite.test[0]])
    assert labelled_tasks(alone, [task.name for task in suite.tasks]) == ("depth", "normals", "edges")


def test_a_missing_picture_is_an_error_whatever_is_left_out(copy):
    (copy / "images/0001.png").unlink()
    with pytest.raises(DataError, match="is missing"):
        nyud.suite(copy, NyudChoices(missing="leave_out", unreadable="skip")).test[0]


def test_a_loss_over_a_batch_labelled_in_part_is_that_of_the_labelled(copy):
    suite = nyud.suite(copy)
    first, second = suite.test[0], suite.test[1]
    for task in suite.tasks:
        prediction = torch.randn(2, task.channels, 48, 64)
        lone = {name: each for name, each in first.items() if name != task.name}
        batch = suite.collate([lone, second])
        of_both = task.loss(prediction, batch[task.name])
        of_one = task.loss(prediction[1:], suite.collate([second])[task.name])
        torch.testing.assert_close(of_both, of_one)


def test_unreadable_files_are_skipped_and_counted_only_on_request(copy):
    (copy / "depth/0001.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="unreadable='skip'"):
        nyud.suite(copy).test[0]
    suite = nyud.suite(copy, NyudChoices(unreadable="skip"))
    assert "depth" not in suite.test[0]
    assert "0001.npy" in suite.test[0]["skipped"]
    (copy / "images/0002.png").write_bytes(b"")
    batch = suite.collate([suite.test[0], suite.test[1]])
    assert len(batch["image"]) == 1
    assert batch["names"] == ("0001",)
    assert [reason.count("cannot be read") for reason in batch["skipped"]] == [1, 1]
    assert "image" not in suite.collate([suite.test[1]])


def test_what_is_wrong_is_never_skipped(copy):
    npy(copy / "depth/0001.npy", np.full((42, 56), np.inf))
    with pytest.raises(DataError, match="not finite"):
        nyud.suite(copy, NyudChoices(unreadable="skip", missing="leave_out")).test[0]


def test_images_of_several_sizes_make_no_batch():
    samples = [{"image": torch.zeros(3, 2, width), "name": "x"} for width in (2, 3)]
    with pytest.raises(ValueError, match="transform them to one size"):
        Collate({})(samples)


def test_a_missing_package_is_named():
    with pytest.raises(ImportError, match=r"Reading it needs the package absent_h5: pip install 'dtme\[dense\]'"):
        imported("absent_h5.io", "Reading it")


def test_losses_of_a_suite_are_the_fields(copy):
    of = {task.name: task for task in nyud.suite(copy).tasks}
    assert of["semseg"].loss is invpt_losses.class_loss
    assert of["depth"].loss is invpt_losses.depth_loss
    assert of["semseg"].meter_options == {"num_classes": 40, "protocol": "standard"}
    assert of["edges"].meter_options == {"tolerance": 0.011, "protocol": "standard"}
