"""Real images from the file to losses, gradients and metrics, with every task they have, labelled in part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nyu18 import TAR, Sample18, as_nyud, as_nyud13
from torch import nn

import dtme.metrics
from experiments.dense.checking.findings import some_of
from experiments.dense.datasets import EpochBatches, InOrder, labelled_tasks, load
from experiments.dense.nyud import NyudChoices
from experiments.dense.on_disk import check_data, load_suite

pytestmark = pytest.mark.skipif(not TAR.is_file(), reason=f"{TAR} is not there")
TASKS = ("depth", "normals", "edges")


@pytest.fixture(scope="module")
def sample() -> Sample18:
    return Sample18()


@pytest.fixture(scope="module")
def nyud(sample, tmp_path_factory):
    return as_nyud(tmp_path_factory.mktemp("nyu18") / "nyud", sample)


@pytest.fixture(scope="module")
def nyud13(sample, tmp_path_factory):
    return as_nyud13(tmp_path_factory.mktemp("nyu18") / "nyud13", sample)


def suite_of(name: str, data):
    if name == "nyud":
        return load_suite("nyud", data, NyudChoices(tasks=TASKS, missing="leave_out"))
    from experiments.dense.nyud13 import Nyud13Choices

    return load_suite("nyud13", data, Nyud13Choices(missing="leave_out"))


def test_what_is_read_is_what_was_measured(nyud, sample):
    suite = suite_of("nyud", nyud)
    assert suite.size == (448, 576)
    assert (len(suite.train), len(suite.test)) == (9, 9)
    for index, name in enumerate(sample.test):
        read = suite.test[index]
        assert read["name"] == name
        inside = read["depth"][11 : 11 + 425, 8 : 8 + 560]
        np.testing.assert_array_equal(inside, sample.depth(name)[45:470, 40:600])
        assert ("edges" in read) == (sample.labels(name) is not None)
        vectors = read["normals"][:, 11 : 11 + 425, 8 : 8 + 560].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(vectors, sample.normals(name)[45:470, 40:600], atol=0.5 / 127.5 + 1e-6)


def test_the_floor_points_up(sample):
    """Normals of the helper itself: of the class floor most point up, against y."""
    for name in sample.test:
        labels = sample.labels(name)
        if labels is not None and (labels == 5).sum() > 2000:
            assert np.median(sample.normals(name)[labels == 5][:, 1]) < -0.8


@pytest.mark.parametrize("name", ["nyud", "nyud13"])
def test_a_training_step_and_a_measurement(name, nyud, nyud13):
    data = nyud if name == "nyud" else nyud13
    suite = suite_of(name, data)
    heads = nn.ModuleDict({task.name: nn.Conv2d(3, task.channels, 1) for task in suite.tasks})
    seen: set[str] = set()
    for batch in load(suite.train, EpochBatches(len(suite.train), 3, steps=3, seed=0), suite.collate):
        labelled = labelled_tasks(batch, [task.name for task in suite.tasks])
        seen.update(labelled)
        heads.zero_grad()
        for task in suite.tasks:
            if task.name in labelled:
                loss = task.loss(heads[task.name](batch["image"]), batch[task.name])
                assert loss.isfinite()
                loss.backward()
        for task in suite.tasks:
            gradient = heads[task.name].weight.grad
            assert (gradient is not None and bool(gradient.any())) == (task.name in labelled)
    assert seen == {task.name for task in suite.tasks}
    meters = {task.name: getattr(dtme.metrics, task.meter)(**task.meter_options) for task in suite.tasks}
    for batch in load(suite.test, InOrder(len(suite.test), 3), suite.collate):
        for task in suite.tasks:
            if task.name in batch and task.name != "edges":  # matching is tested with its metric
                target = batch[task.name]
                perfect = target
                if task.kind == "classes":
                    perfect = torch.nn.functional.one_hot(target.long().clamp(max=12), 13).movedim(-1, 1).float()
                elif task.kind == "depth":
                    perfect = target[:, None]
                meters[task.name].update(perfect, target)
    assert meters["depth"].compute() == 0
    assert meters["normals"].compute() < 0.1
    if name == "nyud13":
        assert meters["semseg"].compute() == pytest.approx(100)


def test_the_check_says_what_is_there(nyud, nyud13, sample, tmp_path):
    chosen = NyudChoices(tasks=TASKS, missing="leave_out")
    findings = check_data("nyud", nyud, chosen)
    facts = "\n".join(f"{each.about}: {each.said} {some_of(each.names)}" for each in findings.found)
    assert not findings.failed
    assert "image: 18 files, 425 x 560, 18 decoded" in facts
    assert "edges: 8 files" in facts
    assert "not the official 654" in facts
    with_labels = as_nyud(tmp_path, sample, labels=True)
    wrong = check_data("nyud", with_labels, NyudChoices(missing="leave_out"))
    assert any("these are 13 classes where 40 are meant" in error.said for error in wrong.errors)
    from experiments.dense.nyud13 import Nyud13Choices

    assert not check_data("nyud13", nyud13, Nyud13Choices(missing="leave_out")).failed
