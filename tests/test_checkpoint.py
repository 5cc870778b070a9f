"""What was learnt is saved and comes back; whatever is wrong with a file, the model stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import dtme
from dtme.apply import is_applied
from models import TinyViT, tiny_vit

TASKS = ("depth", "semseg", "scene")
PLAN = dtme.Plan(
    TASKS, {"blocks.1": TASKS, "blocks.3": ("semseg",)}, {"blocks.2": ("depth", "scene")}, tokens_per_task=2
)
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def learnt(plan: dtme.Plan = PLAN) -> TinyViT:
    model = tiny_vit(TASKS)
    dtme.apply(model, plan)
    for name, tensor in model.state_dict().items():
        if ".dtme." in name:
            tensor.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        dtme.Plan(TASKS),
        dtme.Plan(TASKS, {"blocks.2": TASKS}, modulator="batchnorm"),
        dtme.Plan(TASKS, expand={"blocks.2": TASKS}, joint_tokens=True),
    ],
)
def test_a_fresh_model_becomes_the_one_that_learnt(plan: dtme.Plan, tmp_path: Path):
    model = learnt(plan).eval()
    dtme.save_pretrained(model, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]
    fresh = tiny_vit(TASKS).eval()
    assert dtme.load_pretrained(fresh, str(tmp_path / "run")) is fresh
    assert fresh.state_dict().keys() == model.state_dict().keys()
    for task, output in fresh(IMAGES).items():
        assert torch.equal(output, model(IMAGES)[task])
    assert all(p.requires_grad and p.is_leaf for _, p in dtme.added_parameters(fresh))


def test_the_base_is_not_saved(tmp_path: Path):
    dtme.save_pretrained(learnt(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == PLAN.parameters(16)
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * PLAN.parameters(16) + 1000


@pytest.mark.parametrize("kept", [("scene",), ("semseg", "depth")])
def test_some_tasks_of_many(kept: tuple[str, ...], tmp_path: Path):
    model = learnt()
    dtme.save_pretrained(model, tmp_path, tasks=kept)
    fresh = dtme.load_pretrained(tiny_vit(TASKS), tmp_path)
    outputs, wanted, plain = fresh(IMAGES), model(IMAGES), tiny_vit(TASKS)(IMAGES)
    for task in TASKS:
        torch.testing.assert_close(outputs[task], wanted[task] if task in kept else plain[task], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kept", [(), ("depth", "height")])
def test_unknown_tasks_are_not_saved(kept: tuple[str, ...], tmp_path: Path):
    with pytest.raises(ValueError, match=r"save_pretrained\(tasks=.*give some of"):
        dtme.save_pretrained(learnt(), tmp_path / "run", tasks=kept)
    assert not (tmp_path / "run").exists()


def test_a_plain_model_has_nothing_to_save(tmp_path: Path):
    with pytest.raises(ValueError, match="no inserts"):
        dtme.save_pretrained(tiny_vit(), tmp_path)


def narrower(folder: Path) -> TinyViT:
    return tiny_vit(TASKS, width=8)


def shallower(folder: Path) -> TinyViT:
    return tiny_vit(TASKS, depth=3)


def of_other_tasks(folder: Path) -> TinyViT:
    return tiny_vit(("depth", "semseg"))


def in_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], TinyViT]:
    def spoil(folder: Path) -> TinyViT:
        data = json.loads((folder / "config.json").read_text())
        change(data)
        (folder / "config.json").write_text(json.dumps(data))
        return tiny_vit(TASKS)

    return spoil


def in_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], TinyViT]:
    def spoil(folder: Path) -> TinyViT:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")
        return tiny_vit(TASKS)

    return spoil


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], TinyViT]:
    def spoil(folder: Path) -> TinyViT:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return tiny_vit(TASKS)

    return spoil


def without(name: str) -> Callable[[Path], TinyViT]:
    def spoil(folder: Path) -> TinyViT:
        (folder / name).unlink()
        return tiny_vit(TASKS)

    return spoil


SPOILT: dict[str, tuple[Callable[[Path], TinyViT], str]] = {
    "narrower base": (narrower, "saved from another model: tokens of 16 channels entered 'blocks.1' there, of 8 here"),
    "shallower base": (shallower, "saved from another model: this one has no block 'blocks.3'"),
    "base of other tasks": (of_other_tasks, "branches: no ModuleDict"),
    "truncated weights": (
        bytes_of("model.safetensors", lambda b: b[:-40]),
        r"no readable safetensors file .*cut short",
    ),
    "empty weights": (bytes_of("model.safetensors", lambda b: b""), "no readable safetensors file"),
    "text for weights": (bytes_of("model.safetensors", lambda b: b"hello" * 9), "no readable safetensors file"),
    "no weights": (without("model.safetensors"), r"holds no model\.safetensors"),
    "weight missing": (
        in_weights(lambda w: w.pop("blocks.1.dtme.shift")),
        r"'blocks\.1\.dtme\.shift' has shape missing",
    ),
    "weight too many": (
        in_weights(lambda w: w.update(other=torch.ones(1))),
        r"'other' has shape \(1,\), expected nothing",
    ),
    "weight of another shape": (
        in_weights(lambda w: w.update({"blocks.2.dtme.tokens": torch.ones(2, 1, 16)})),
        r"has shape \(2, 1, 16\), expected \(2, 2, 16\)",
    ),
    "weight not a number": (
        in_weights(lambda w: w["blocks.1.dtme.scale"][1].fill_(torch.nan)),
        r"'blocks\.1\.dtme\.scale' holds values that are not finite",
    ),
    "no config": (without("config.json"), r"holds no config\.json"),
    "truncated config": (bytes_of("config.json", lambda b: b[: len(b) // 2]), r"config\.json is not readable JSON"),
    "binary config": (bytes_of("config.json", lambda b: b"\xff\xfe\x00" + b), r"config\.json is no text file"),
    "foreign config": (bytes_of("config.json", lambda b: b'{"model_type": "vit"}'), "holds None, expected the format"),
    "newer config": (in_config(lambda c: c.update(version=9)), r"version 9 of dtme\.checkpoint; this library reads"),
    "config without a plan": (in_config(lambda c: c.pop("plan")), r"config\.json: 'plan' or 'base' is missing"),
    "config without a base": (in_config(lambda c: c.pop("base")), r"config\.json: 'plan' or 'base' is missing"),
    "width that is no number": (
        in_config(lambda c: c["base"]["widths"].update({"blocks.1": "wide"})),
        r"config\.json: 'plan' or 'base' is missing or malformed",
    ),
    "plan of an unknown task": (
        in_config(lambda c: c["plan"]["modulate"].update(x=["y"])),
        r"config\.json: modulate\['x'\]",
    ),
    "plan with an unknown field": (in_config(lambda c: c["plan"].update(depth=3)), r"unknown fields \['depth'\]"),
    "plan that is a list": (in_config(lambda c: c.update(plan=["a"])), r"config\.json: 'plan' or 'base' is missing"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_checkpoint_leaves_the_model_as_it_was(fault: str, tmp_path: Path):
    dtme.save_pretrained(learnt(), tmp_path)
    spoil, says = SPOILT[fault]
    model = spoil(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(ValueError, match=says):
        dtme.load_pretrained(model, tmp_path)
    assert not is_applied(model)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("source", ["nowhere", "./a/b", "/no/such/folder", Path("owner/name")])
def test_a_folder_that_is_not_there(source: str | Path):
    with pytest.raises(ValueError, match="is no folder here, nor the name of a repository"):
        dtme.load_pretrained(tiny_vit(TASKS), source)


def test_a_model_with_inserts_is_not_loaded_into(tmp_path: Path):
    model = learnt()
    dtme.save_pretrained(model, tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"has inserts already. Call dtme\.remove"):
        dtme.load_pretrained(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_crash_while_writing_keeps_the_earlier_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = learnt()
    dtme.save_pretrained(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(tensors: Any, path: Path, metadata: Any = None) -> None:
        Path(path).write_bytes(safetensors.torch.save(tensors)[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr("dtme.checkpoint.save_file", half)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(KeyboardInterrupt):
        dtme.save_pretrained(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_come_back_in_the_type_of_the_base(tmp_path: Path):
    dtme.save_pretrained(learnt(), tmp_path)
    fresh = dtme.load_pretrained(tiny_vit(TASKS).to(torch.bfloat16), tmp_path)
    assert {parameter.dtype for _, parameter in dtme.added_parameters(fresh)} == {torch.bfloat16}
