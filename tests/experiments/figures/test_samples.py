from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from experiments.figures.pixels import label_colours, pixels, value_range
from experiments.figures.sample_predictions import sample_predictions
from experiments.figures.samples import Samples


def test_saved_and_loaded_they_are_the_same(make_samples, tmp_path):
    samples = make_samples()
    samples.save(tmp_path / "samples.safetensors")
    again = Samples.load(tmp_path / "samples.safetensors")
    assert again.kinds == samples.kinds
    assert list(again.kinds) == list(samples.kinds)
    assert list(again.predictions) == ["MT", "TM+TE"]
    assert torch.equal(again.images, samples.images)
    for task in samples.kinds:
        assert torch.equal(again.targets[task], samples.targets[task])
        assert again.targets[task].dtype == samples.targets[task].dtype
        for method in samples.predictions:
            assert torch.equal(again.predictions[method][task], samples.predictions[method][task])


def test_names_may_hold_anything_and_tensors_may_be_views(tmp_path):
    maps = torch.rand(2, 2, 4, 4)
    kinds = {"a/b.0": "depth", "<b>": "signed"}
    targets = {"a/b.0": maps[:, 0], "<b>": maps[:, 1]}
    Samples(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), targets, {"x/y": targets}, kinds).save(tmp_path / "s")
    assert torch.equal(Samples.load(tmp_path / "s").predictions["x/y"]["<b>"], maps[:, 1])


def test_what_is_no_file_of_samples_says_so(make_samples, tmp_path):
    path = tmp_path / "samples.safetensors"
    make_samples().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"holds no samples .* write it again"):
        Samples.load(path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"holds no samples .*format None"):
        Samples.load(tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError):
        Samples.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 8, 8)}, r"images has shape .*float32"),
        ({"kinds": {"semseg": "classes"}}, r"kinds\['semseg'\]='classes': choose one of"),
        ({"targets": {}}, r"targets has the tasks \[\]"),
    ],
)
def test_fields_that_do_not_fit(make_samples, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_samples(), **change)


@pytest.mark.parametrize(
    ("task", "tensor", "message"),
    [
        ("semseg", torch.zeros(2, 13, 8, 8), "take the argmax of logits"),
        ("semseg", torch.zeros(2, 8, 8), "give whole class labels"),
        ("edges", torch.full((2, 8, 8), 3.0), "give probabilities, the sigmoid"),
        ("depth", torch.zeros(3, 8, 8), r"has shape \(3, 8, 8\), expected \(2, 1, h, w\) or \(2, h, w\)"),
        ("normals", torch.zeros(2, 8, 8), r"expected \(2, 3, h, w\)"),
    ],
)
def test_predictions_that_cannot_be_shown(make_samples, task, tensor, message):
    samples = make_samples()
    predictions = {**samples.predictions, "MT": {**samples.predictions["MT"], task: tensor}}
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(samples, predictions=predictions)
    assert f"predictions['MT']['{task}']" in str(error.value)


@pytest.mark.parametrize(("n", "methods"), [(1, ("MT",)), (3, ("MT", "TM+TE")), (2, ("ST", "MT", "TM", "TE", "TM+TE"))])
def test_a_picture_per_image_task_and_method(make_samples, assert_readable, n, methods):
    samples = make_samples(n, methods=methods)
    figure = sample_predictions(samples)
    labels = [axes.get_label() for axes in figure.axes[1:]]
    for task in samples.kinds:
        for name in ("truth", *methods):
            assert labels.count(f"{task}, {name}") == n
    assert labels.count("image") % n == 0
    assert len(set(labels)) == 1 + len(samples.kinds) * (1 + len(methods))
    assert_readable(figure)


def test_long_names_of_methods_are_written_in_full(make_samples, assert_readable):
    long = "MT as long as Adapt r8 last block, even gradients"
    figure = sample_predictions(make_samples(2, methods=("MT", long)))
    assert_readable(figure)
    written = [text.get_text().replace("\n", " ") for text in figure.axes[0].texts]
    assert written.count(long) == 5


def test_pictures_show_their_own_tensor(make_samples):
    samples = make_samples(2)
    figure = sample_predictions(samples)
    second = [axes for axes in figure.axes[1:] if axes.get_label() == "semseg, TM+TE"][1]
    expected = label_colours(13)[samples.predictions["TM+TE"]["semseg"][1].long().numpy()]
    assert second.images[0].get_array().tolist() == expected.tolist()


UNKNOWN = [223, 228, 234]


def test_unknown_labels_are_grey_and_known_ones_keep_their_colour():
    picture = pixels(torch.tensor([[0, 30, 255]], dtype=torch.uint8), "labels", (0, 1))
    assert picture[0].tolist() == [*label_colours(31)[[0, 30]].tolist(), UNKNOWN]


def test_the_first_forty_labels_have_different_colours():
    assert len(set(map(tuple, label_colours(40).tolist()))) == 40


def test_depth_is_coloured_within_the_truth_of_its_row():
    truth = torch.tensor([[1.0, 3.0, 0.0, torch.inf]])
    within = value_range(truth, "depth")
    assert within == (1.0, 3.0)
    near, far, zero, infinite = pixels(truth, "depth", within)[0].tolist()
    assert zero == infinite == UNKNOWN
    assert pixels(torch.tensor([[0.5, 9.0]]), "depth", within)[0].tolist() == [near, far]


def test_normals_are_scaled_to_unit_length_and_zero_is_unknown():
    right_and_none = torch.tensor([[5.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).view(3, 1, 2)
    assert pixels(right_and_none, "normals", (0, 1))[0].tolist() == [[255, 128, 128], UNKNOWN]


def test_edges_are_dark_on_white():
    truth = torch.tensor([[0, 1, 255]], dtype=torch.uint8)
    assert pixels(truth, "edges", (0, 1))[0].tolist() == [[255, 255, 255], [0, 0, 0], UNKNOWN]
    assert pixels(torch.tensor([[True]]), "edges", (0, 1)).tolist() == [[[0, 0, 0]]]


def test_signed_values_are_coloured_around_zero():
    low, zero, high = pixels(torch.tensor([[-0.5, 0.0, 0.5]]), "signed", (-0.5, 0.5))[0].astype(int).tolist()
    assert max(zero) - min(zero) < 5
    assert low[2] > low[0]
    assert high[0] > high[2]
    assert value_range(torch.zeros(1, 2, 2), "signed") == (-1.0, 1.0)
