"""Trunks of timm's: what plans add to them in the paper's per cents, weights from files, and decoders behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

import dtme
from dtme.metrics import L1Error
from experiments.dense.backbones.models import quarters
from experiments.dense.backbones.recipe import BackboneRecipe
from experiments.dense.backbones.trunk import make_trunk, shape_of
from experiments.dense.backbones.weights import first_weights, identity_of
from experiments.dense.branch_point import analyse
from experiments.dense.model import build
from experiments.dense.suite import Split, Task
from experiments.dense.training import begin, evaluate, guesses, task_losses
from experiments.training.run import train

TINY = BackboneRecipe(
    size=(32, 64), weights="none", width=24, depth=6, attention_heads=2, head_width=8, batch=2, steps=4, expand_at=1
)


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target.float()).square().mean()


def make_tasks(*channels: int) -> tuple[Task, ...]:
    names = "abcdefghijk"
    return tuple(Task(names[k], c, squared, L1Error, "L1", "signed") for k, c in enumerate(channels))


@pytest.fixture
def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 64), generator=generator, dtype=torch.uint8)
    bright = images.float().mean(1, keepdim=True) / 255
    return Split(images, {"a": bright, "b": 1 - bright.expand(-1, 2, -1, -1)})


# --- what plans add ---

NYUD, PASCAL, TASKONOMY = (448, 576), (512, 512), (256, 256)


@pytest.mark.parametrize(
    ("backbone", "size", "tasks", "inserts", "trunk", "percent", "digits"),
    [
        ("vit_tiny", NYUD, 4, "TM+TE", 5_680_320, 0.24, 2),
        ("vit_tiny", PASCAL, 5, "TM+TE", 5_683_392, 0.30, 2),
        ("vit_tiny", TASKONOMY, 11, "TM", 5_535_936, 0.46, 2),
        ("vit_small", TASKONOMY, 11, "TM", 21_688_704, 0.23, 2),
        ("vit_base", TASKONOMY, 11, "TM", 85_844_736, 0.118, 3),
        ("vit_large", TASKONOMY, 11, "TM", 303_363_072, 0.089, 3),
    ],
)
def test_added_parameters_are_the_papers_per_cent_of_the_trunk(
    backbone: str, size: tuple[int, int], tasks: int, inserts: str, trunk: int, percent: float, digits: int
):
    """NYUD-v2 and PASCAL-Context by modulators and task tokens in half of the blocks each.

    Taskonomy's figures are 2 p parameters for each task and every second block: what modulators alone add there, or modulators
    and task tokens in a third of the blocks each.
    """
    shape = shape_of(backbone)
    recipe = BackboneRecipe(
        size=size, width=shape.width, depth=shape.depth, attention_heads=shape.attention_heads, backbone=backbone
    )
    with torch.device("meta"):
        model = build(make_tasks(*[1] * tasks), recipe, 0)
    assert sum(parameter.numel() for parameter in model.trunk.parameters()) == trunk
    names, half = tuple("abcdefghijk"[:tasks]), recipe.depth // 2
    blocks = dict.fromkeys([f"trunk.blocks.{place}" for place in range(half)], names)
    plan = dtme.Plan(names, modulate=blocks, expand=blocks if inserts == "TM+TE" else {})
    dtme.apply(model, plan)
    added = sum(parameter.numel() for _, parameter in dtme.added_parameters(model))
    assert added == plan.parameters(shape.width)
    assert round(100 * added / trunk, digits) == percent
    if inserts == "TM" and recipe.depth % 3 == 0:
        third = dict.fromkeys(list(blocks)[: recipe.depth // 3], names)
        assert dtme.Plan(names, modulate=third, expand=third).parameters(shape.width) == added


# --- weights ---


def source(size: tuple[int, int] = (48, 48), **changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return make_trunk(BackboneRecipe(**{**vars(TINY), "size": size, **changes})).state_dict()


def with_weights(path: Path, **changes: Any) -> BackboneRecipe:
    return BackboneRecipe(**{**vars(TINY), "weights": str(path), **changes})


@pytest.mark.parametrize("kind", ["safetensors", "torch", "nested", "whole model", "classifier"])
def test_weights_from_a_file(kind: str, tmp_path: Path):
    held = source()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    given: Any = held
    if kind == "nested":
        given = {"model": {f"module.{name}": value for name, value in held.items()}}
    elif kind == "whole model":
        given = {**{f"trunk.{name}": value for name, value in held.items()}, "heads.a.weight": torch.zeros(2)}
    elif kind == "classifier":
        given = {**held, "head.weight": torch.zeros(10, 24), "head.bias": torch.zeros(10)}
    save_file(given, path) if kind == "safetensors" else torch.save(given, path)
    recipe = with_weights(path)
    first = first_weights(recipe)
    model = build(make_tasks(1), recipe, 0, first)
    loaded = model.trunk.state_dict()
    for name, value in held.items():
        if name != "pos_embed":
            assert torch.equal(loaded[name], value), name
    positions = loaded["pos_embed"]
    assert positions.shape == (1, 1 + 2 * 4, 24)
    assert torch.equal(positions[:, 0], held["pos_embed"][:, 0])  # the class token's
    expected = resample_abs_pos_embed(held["pos_embed"], [2, 4])
    torch.testing.assert_close(positions, expected)
    name, digest = identity_of(str(path))
    assert name == path.name
    assert len(digest) == 16


def test_positions_of_the_right_grid_stay_as_they_are(tmp_path: Path):
    held = source((32, 64))
    save_file(held, tmp_path / "w.safetensors")
    first = first_weights(with_weights(tmp_path / "w.safetensors"))
    assert torch.equal(first["trunk.pos_embed"], held["pos_embed"])


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_what_is_no_such_trunk_is_refused(tmp_path: Path):
    def refused(held: Any, said: str, name: str = "w.pth", **changes: Any) -> None:
        path = tmp_path / name
        if isinstance(held, bytes):
            path.write_bytes(held)
        else:
            torch.save(held, path)
        with pytest.raises(ValueError, match=said):
            first_weights(with_weights(path, **changes))

    held = source()
    with pytest.raises(FileNotFoundError, match="is no file"):
        first_weights(with_weights(tmp_path / "nowhere.pth"))
    refused(b"cut", "cannot be read")
    refused(b"\x10cut", "cannot be read", "w.safetensors")
    refused({"trap": Trap(tmp_path / "sprung")}, "more than tensors is not opened")
    assert not (tmp_path / "sprung").exists()
    refused([1, 2], "no state dict")
    refused({"layer1.weight": torch.zeros(3)}, "no vision transformer by timm's names")
    refused(source(width=48), "is of 48 channels and 6 blocks, but backbone='vit_tiny' has 24 and 6")
    refused({**held, "blocks.0.ls1.gamma": torch.zeros(24)}, "has blocks.0.ls1.gamma, which that does not know")
    refused({name: v for name, v in held.items() if name != "norm.bias"}, "lacks norm.bias")
    refused({**held, "norm.bias": torch.full((24,), torch.nan)}, "not finite")
    refused({**held, "norm.bias": torch.zeros(23)}, "norm.bias is \\(23,\\)")
    refused({**held, "pos_embed": held["pos_embed"][:, :6]}, "pos")
    refused(b"", "has the same ones for timm", "w.npz")


def test_a_hub_that_cannot_be_reached_says_what_to_give(monkeypatch: pytest.MonkeyPatch):
    import timm

    def offline(*given: Any, **options: Any) -> nn.Module:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_384\.augreg_in21k_ft_in1k cannot be had"):
        first_weights(BackboneRecipe(size=(32, 64), weights="hub"))


# --- decoders ---


@pytest.mark.parametrize("decoder", ["conv", "linear", "invpt", "taskprompter"])
def test_every_decoder_trains_is_analysed_and_takes_inserts(decoder: Any, split: Split):
    recipe = BackboneRecipe(**{**vars(TINY), "decoder": decoder})
    tasks = make_tasks(1, 2)
    run = begin(build(tasks, recipe, 0), tasks, split, recipe, seed=0)
    train(run, 2)

    class One:
        """What an analysis asks of a seed."""

        def __init__(self) -> None:
            self.recipe, self.seed = BackboneRecipe(**{**vars(recipe), "analysis_batches": 2}), 0

    one: Any = One()
    suite: Any = type("Suite", (), {"train": split, "tasks": tasks})
    report = analyse(run.model, one, suite)
    assert len(report.blocks) == 6
    assert not isinstance(report.flops, str), report.flops
    assert next(iter(report.recommended().adapt)).startswith("trunk.")
    assert all(block.startswith("trunk.") for block in report.blocks)
    images = split.batch(slice(0, 2))["image"]
    run.model.eval()
    with torch.no_grad():
        before = {task: guesses(output)[0] for task, output in run.model(images).items()}
    dtme.apply(run.model, report.plan(expansion=False))
    with torch.no_grad():
        after = {task: guesses(output)[0] for task, output in run.model(images).items()}
    for task in tasks:
        assert before[task.name].shape == (2, task.channels, 32, 64)
        torch.testing.assert_close(after[task.name], before[task.name], atol=1e-5, rtol=1e-4)
    dtme.remove(run.model)
    expanded = begin(dtme.apply(run.model, report.plan()), tasks, split, recipe, seed=0)  # pyright: ignore
    held = {name: value.clone() for name, value in dtme.added_parameters(expanded.model)}
    train(expanded)
    moved = [name for name, value in dtme.added_parameters(expanded.model) if not torch.equal(value, held[name])]
    assert len(moved) == len(held)
    assert all(value == value for value in evaluate(expanded.model, split, tasks).values())


def test_the_decoder_of_task_prompts_takes_the_trunks_weights(tmp_path: Path):
    held = source((32, 64))
    save_file(held, tmp_path / "w.safetensors")
    recipe = with_weights(tmp_path / "w.safetensors", decoder="taskprompter")
    model: Any = build(make_tasks(1, 2), recipe, 0, first_weights(recipe))
    assert torch.equal(model.trunk.levels[2].blocks[1].attention.qkv.weight, held["blocks.5.attn.qkv.weight"])
    assert torch.equal(model.trunk.positions, held["pos_embed"][:, 1:])
    tokens = torch.randn(2, 9, 24)
    block, plain = model.trunk.levels[1].blocks[0].eval(), make_trunk(recipe).eval().blocks[2]
    plain.load_state_dict({n.removeprefix("blocks.2."): v for n, v in held.items() if n.startswith("blocks.2.")})
    torch.testing.assert_close(block(tokens)[0], plain(tokens), atol=1e-4, rtol=1e-3)


def test_both_guesses_of_a_task_are_supervised(split: Split):
    recipe = BackboneRecipe(**{**vars(TINY), "decoder": "invpt"})
    tasks = make_tasks(1, 2)
    model, batch = build(tasks, recipe, 0).eval(), split.batch(slice(0, 2))
    final, first = model(batch["image"])["a"]
    expected = squared(final, batch["a"]) + squared(first, batch["a"])
    torch.testing.assert_close(task_losses(model, batch, tasks)["a"], expected)


def test_features_are_those_behind_the_quarters():
    recipe = BackboneRecipe(**{**vars(TINY), "depth": 4})
    model: Any = build(make_tasks(1), recipe, 0).eval()
    seen: list[Tensor] = []
    for block in model.trunk.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    levels = model.levels(torch.randn(1, 3, 32, 64))
    assert quarters(4) == [0, 1, 2]
    assert len(levels) == 4
    for level, tokens in zip(levels[:3], seen[:3], strict=True):
        assert torch.equal(level, tokens[:, 1:].transpose(1, 2).unflatten(2, (2, 4)))
    assert torch.equal(levels[3], model.trunk.norm(seen[3])[:, 1:].transpose(1, 2).unflatten(2, (2, 4)))
    last: Any = build(make_tasks(1), BackboneRecipe(**{**vars(recipe), "features": "last"}), 0)
    assert len(last.levels(torch.randn(1, 3, 32, 64))) == 1


def test_half_precision_and_compiled_models_are_put_back(split: Split):
    from experiments.dense.training import compiled

    recipe = BackboneRecipe(**{**vars(TINY), "precision": "bfloat16", "compiled": True})
    tasks = make_tasks(1, 2)
    model = build(tasks, recipe, 0)
    names = list(model.state_dict())
    with compiled(model, recipe):
        assert model._compiled_call_impl is not None
        assert list(model.state_dict()) == names
    assert model._compiled_call_impl is None
    outputs = model(split.batch(slice(0, 2))["image"])
    assert outputs["a"].dtype == torch.float32
    run = begin(model, tasks, split, recipe, seed=0)
    train(run)
    assert run.step == recipe.steps


def test_shapes_are_those_of_the_names():
    assert shape_of("vit_small") == shape_of("vit_small_patch16_384")
    assert (shape_of("vit_large").width, shape_of("vit_large").depth) == (1024, 24)
    assert shape_of("vit_small_patch14_dinov2").patch == 14
