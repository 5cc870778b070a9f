"""What was learnt is saved and comes back; whatever is wrong with a file, the model stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from models import TinyViT, timm_multitask, tiny_vit
from safetensors.torch import load_file, save_file
from torch import nn

import dtme
from dtme.attach.apply import is_applied
from dtme.checkpoint.files import undigested

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
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * PLAN.parameters(16) + 2000


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


def deeper(folder: Path) -> TinyViT:
    return tiny_vit(TASKS, depth=5)


def of_other_blocks(folder: Path) -> TinyViT:
    model = tiny_vit(TASKS)
    model.blocks[2] = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return model


def widened(folder: Path) -> TinyViT:
    model = tiny_vit(TASKS)
    model.blocks[1].mlp = nn.Sequential(nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 16))
    return model


def of_other_tasks(folder: Path) -> TinyViT:
    return tiny_vit(("depth", "semseg"))


def in_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], TinyViT]:
    def spoil(folder: Path) -> TinyViT:
        data = undigested(json.loads((folder / "config.json").read_text()))
        change(data)
        (folder / "config.json").write_text(json.dumps(data))
        return tiny_vit(TASKS)

    return spoil


def in_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], TinyViT]:
    def spoil(folder: Path) -> TinyViT:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")
        return in_config(lambda data: None)(folder)

    return spoil


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], TinyViT]:
    def spoil(folder: Path) -> TinyViT:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return tiny_vit(TASKS)

    return spoil


def of_two_checkpoints(folder: Path) -> TinyViT:
    config = (folder / "config.json").read_bytes()
    torch.manual_seed(1)
    dtme.save_pretrained(learnt(), folder)
    (folder / "config.json").write_bytes(config)
    return tiny_vit(TASKS)


def without(name: str) -> Callable[[Path], TinyViT]:
    def spoil(folder: Path) -> TinyViT:
        (folder / name).unlink()
        return tiny_vit(TASKS)

    return spoil


SPOILT: dict[str, tuple[Callable[[Path], TinyViT], str]] = {
    "narrower base": (
        narrower,
        "saved beside another base, TinyViT, which this one, TinyViT, is not:\n"
        "  'blocks.0', 'blocks.1', 'blocks.2' and 1 more: takes tokens of 16 channels there, of 8 here",
    ),
    "shallower base": (shallower, "is not:\n  'blocks.3' is missing here"),
    "deeper base": (deeper, "is not:\n  'blocks.4' is missing there"),
    "base of other blocks": (
        of_other_blocks,
        r"'blocks.2' has .* shapes \(a Block there, a TransformerEncoderLayer here\): .*; 14 more differ",
    ),
    "base with a wider layer": (
        widened,
        r"'blocks.1' has .* shapes: mlp.0.weight is 32x16 there, 48x16 here; .*; 1 more differ",
    ),
    "base of other tasks": (of_other_tasks, "branches: no ModuleDict"),
    "truncated weights": (
        bytes_of("model.safetensors", lambda b: b[:-40]),
        r"no readable safetensors file .*cut short",
    ),
    "empty weights": (bytes_of("model.safetensors", lambda b: b""), "no readable safetensors file"),
    "text for weights": (bytes_of("model.safetensors", lambda b: b"hello" * 9), "no readable safetensors file"),
    "no weights": (without("model.safetensors"), r"holds no model\.safetensors"),
    "weight missing": (
        in_weights(lambda w: w.pop("blocks.1.dtme.shift.depth")),
        r"'blocks\.1\.dtme\.shift\.depth' has shape missing, expected \(16,\)",
    ),
    "weight too many": (
        in_weights(lambda w: w.update(other=torch.ones(1))),
        r"'other' has shape \(1,\), expected nothing",
    ),
    "weight of another shape": (
        in_weights(lambda w: w.update({"blocks.2.dtme.tokens.scene": torch.ones(1, 16)})),
        r"'blocks\.2\.dtme\.tokens\.scene' has shape \(1, 16\), expected \(2, 16\)",
    ),
    "weight not a number": (
        in_weights(lambda w: w["blocks.1.dtme.scale.semseg"].fill_(torch.nan)),
        r"'blocks\.1\.dtme\.scale\.semseg' holds values that are not finite",
    ),
    "no config": (without("config.json"), r"holds no config\.json"),
    "truncated config": (bytes_of("config.json", lambda b: b[: len(b) // 2]), r"config\.json is not readable JSON"),
    "binary config": (bytes_of("config.json", lambda b: b"\xff\xfe\x00" + b), r"config\.json is no text file"),
    "foreign config": (bytes_of("config.json", lambda b: b'{"model_type": "vit"}'), "holds None, expected the format"),
    "newer config": (
        in_config(lambda c: c.update(version=9)),
        r"version 9 of dtme\.checkpoint; this library reads .* upgrade dtme",
    ),
    "config of no version": (
        in_config(lambda c: c.pop("version")),
        r"version None of .* this library reads \(1, 2\)\.$",
    ),
    "config without a plan": (in_config(lambda c: c.pop("plan")), r"config\.json: 'plan', .* is missing or malformed"),
    "config without a base": (in_config(lambda c: c.pop("base")), r"config\.json: 'plan', .* is missing or malformed"),
    "width that is no number": (
        in_config(lambda c: c["base"]["trunk"][0].update(width="wide")),
        r"config\.json: 'plan', .* is missing or malformed .*'wide'",
    ),
    "base whose weights are no numbers": (
        in_config(lambda c: c["base"]["weights"].update({"blocks.1": "one two"})),
        r"config\.json: 'plan', .* is missing or malformed .*'one'",
    ),
    "tasks the plan does not know": (
        in_config(lambda c: c.update(tasks=["depth", "height"])),
        r"config\.json: tasks \('depth', 'height'\) were saved, but its plan knows",
    ),
    "files of two checkpoints": (
        of_two_checkpoints,
        r"model\.safetensors and config\.json beside it are of two checkpoints",
    ),
    "plan of an unknown task": (
        in_config(lambda c: c["plan"]["modulate"].update(x=["y"])),
        r"config\.json: modulate\['x'\]",
    ),
    "plan with an unknown field": (in_config(lambda c: c["plan"].update(depth=3)), r"unknown fields \['depth'\]"),
    "plan that is a list": (
        in_config(lambda c: c.update(plan=["a"])),
        r"config\.json: 'plan', .* is missing or malformed",
    ),
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

    monkeypatch.setattr("dtme.checkpoint.files.save_file", half)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(KeyboardInterrupt):
        dtme.save_pretrained(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_come_back_in_float32_beside_a_narrower_base(tmp_path: Path):
    dtme.save_pretrained(learnt(), tmp_path)
    fresh = dtme.load_pretrained(tiny_vit(TASKS).to(torch.bfloat16), tmp_path)
    assert {parameter.dtype for _, parameter in dtme.added_parameters(fresh)} == {torch.float32}


def other_base() -> TinyViT:
    return tiny_vit(TASKS, seed=1)


def test_other_weights_of_the_base_are_told(tmp_path: Path):
    dtme.save_pretrained(learnt(), tmp_path)
    with pytest.warns(UserWarning, match=r"base, TinyViT, whose weights .* differ in .*blocks\.0.* base=True"):
        dtme.load_pretrained(other_base(), tmp_path)
    slightly = tiny_vit(TASKS)
    with torch.no_grad():
        slightly.blocks[2].mlp[0].weight.mul_(1.02)
    with pytest.warns(UserWarning, match=r"They differ in blocks\.2 \(of 11 places\)"):
        dtme.load_pretrained(slightly, tmp_path)


def test_the_warning_made_an_error_leaves_the_model_as_it_was(tmp_path: Path):
    dtme.save_pretrained(learnt(), tmp_path)
    model = other_base()
    with pytest.raises(UserWarning, match="differ in"):
        dtme.load_pretrained(model, tmp_path)
    assert not is_applied(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_weights_in_another_precision_are_the_same(dtype: torch.dtype, tmp_path: Path):
    def base() -> TinyViT:
        model = tiny_vit(TASKS)
        with torch.no_grad():
            model.blocks[1].mlp[0].weight.mul_(1e-6)  # where float16 has few bits left
        return model

    dtme.save_pretrained(dtme.apply(base(), PLAN), tmp_path / "single")
    dtme.load_pretrained(base().to(dtype), tmp_path / "single")
    dtme.save_pretrained(dtme.apply(base().to(dtype), PLAN), tmp_path / "low")
    dtme.load_pretrained(base().to(dtype).float(), tmp_path / "low")
    dtme.load_pretrained(base(), tmp_path / "low")


def test_the_base_is_saved_where_asked_and_makes_any_model_whole(tmp_path: Path):
    model = learnt().eval()
    model.register_buffer("count", torch.tensor(7))
    dtme.save_pretrained(model, tmp_path, base=True)
    fresh = other_base().eval()
    fresh.register_buffer("count", torch.tensor(0))
    dtme.load_pretrained(fresh, tmp_path)
    assert fresh.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in fresh.state_dict().items())
    with pytest.raises(
        ValueError, match=r"base\.safetensors does not fit this model: 'count' has shape \(\), expected noth"
    ):
        dtme.load_pretrained(tiny_vit(TASKS), tmp_path)
    dtme.save_pretrained(model, tmp_path)  # without: the earlier file is not left lying about
    assert not (tmp_path / "base.safetensors").exists()


def test_parameters_that_share_memory_are_saved(tmp_path: Path):
    def tied(seed: int) -> TinyViT:
        model = tiny_vit(TASKS, seed=seed)
        model.blocks[3].mlp[0].weight = model.blocks[2].mlp[0].weight
        return model

    model = dtme.apply(tied(0), PLAN)
    dtme.save_pretrained(model, tmp_path, base=True)
    fresh = dtme.load_pretrained(tied(1), tmp_path)
    assert fresh.blocks[3].mlp[0].weight is fresh.blocks[2].mlp[0].weight
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in fresh.state_dict().items())


def test_values_that_are_not_finite_are_not_saved(tmp_path: Path):
    model = learnt()
    dtme.save_pretrained(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with torch.no_grad():
        model.blocks[2].dtme.tokens[1, 0, 3] = torch.inf
    with pytest.raises(ValueError, match=r"'blocks\.2\.dtme\.tokens\.scene' holds values .* diverged"):
        dtme.save_pretrained(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match=r"save_pretrained\(folder='.*run'\): this is a file"):
        dtme.save_pretrained(learnt(), tmp_path / "run")
    with pytest.raises(ValueError, match="is no folder here"):
        dtme.load_pretrained(tiny_vit(TASKS), tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_tasks_in_another_order_get_their_own(tmp_path: Path):
    model = learnt().eval()
    dtme.save_pretrained(model, tmp_path)
    turned = tiny_vit(TASKS)
    turned.heads = nn.ModuleDict({task: turned.heads[task] for task in reversed(TASKS)})
    data = undigested(json.loads((tmp_path / "config.json").read_text()))
    data["plan"]["tasks"] = list(reversed(TASKS))  # by hand: a row is its task's whatever the order
    for folder in (tmp_path, tmp_path / "turned"):
        dtme.save_pretrained(model, folder)
    (tmp_path / "turned" / "config.json").write_text(json.dumps(data))
    for folder in (tmp_path, tmp_path / "turned"):
        outputs = dtme.load_pretrained(turned.eval(), folder)(IMAGES)
        for task, output in model(IMAGES).items():
            torch.testing.assert_close(outputs[task], output, rtol=0, atol=1e-6)
        dtme.remove(turned)


def test_a_model_of_some_tasks_takes_what_was_saved_of_them(tmp_path: Path):
    model = learnt().eval()
    alone = tiny_vit(TASKS).eval()
    alone.heads = nn.ModuleDict({"scene": alone.heads["scene"]})
    dtme.save_pretrained(model, tmp_path / "all")
    dtme.save_pretrained(model, tmp_path / "one", tasks=["scene"])
    for folder, tasks in (("all", ["scene"]), ("one", None), ("one", ["scene"])):
        outputs = dtme.load_pretrained(alone, tmp_path / folder, tasks=tasks)(IMAGES)
        torch.testing.assert_close(outputs["scene"], model(IMAGES)["scene"], rtol=0, atol=1e-6)
        assert next(iter(alone.blocks[2].dtme.parameters())).shape[0] == 1
        dtme.remove(alone)
    every = dtme.load_pretrained(tiny_vit(TASKS).eval(), tmp_path / "all", tasks=["scene", "depth"])(IMAGES)
    torch.testing.assert_close(every["depth"], model(IMAGES)["depth"], rtol=0, atol=1e-6)
    torch.testing.assert_close(every["semseg"], tiny_vit(TASKS).eval()(IMAGES)["semseg"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("tasks", [["depth"], ["scene", "depth"], ["height"], []])
def test_tasks_that_were_not_saved_are_not_loaded(tasks: list[str], tmp_path: Path):
    dtme.save_pretrained(learnt(), tmp_path, tasks=["scene"])
    model = tiny_vit(TASKS)
    with pytest.raises(ValueError, match=r"load_pretrained\(tasks=.* holds the inserts of \('scene',\)"):
        dtme.load_pretrained(model, tmp_path, tasks=tasks)
    assert not is_applied(model)


def test_the_origin_of_a_base_is_remembered_and_told(tmp_path: Path):
    model = dtme.apply(timm_multitask(TASKS), dtme.Plan(TASKS, {"trunk.blocks.1": TASKS}))
    dtme.save_pretrained(model, tmp_path)
    base = json.loads((tmp_path / "config.json").read_text())["base"]
    assert (base["class"], base["name"]) == ("TimmMultitask", "vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    with pytest.raises(
        ValueError, match=r"beside another base, TimmMultitask \(vit_tiny_.*, which this one, TinyViT, is not"
    ):
        dtme.load_pretrained(tiny_vit(TASKS), tmp_path)


def test_a_wrapped_model_is_saved_as_the_model_inside(tmp_path: Path):
    model = learnt().eval()
    dtme.save_pretrained(nn.ModuleDict({"inside": model}), tmp_path)
    assert torch.equal(dtme.load_pretrained(tiny_vit(TASKS).eval(), tmp_path)(IMAGES)["depth"], model(IMAGES)["depth"])


class ByName(nn.Module):
    """A model whose tasks leave by modules that no dictionary holds."""

    def __init__(self, tasks: tuple[str, ...] = TASKS) -> None:
        super().__init__()
        self.inner = tiny_vit(TASKS)
        self.inner.heads = nn.ModuleDict()
        for task in tasks:
            setattr(self, f"to_{task}", nn.Linear(16, 1))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = self.inner.embed(image)
        for block in self.inner.blocks:
            tokens = block(tokens)
        return {task: getattr(self, f"to_{task}")(tokens) for task in TASKS if hasattr(self, f"to_{task}")}


@pytest.mark.parametrize("given", ["names", "modules"])
def test_branches_that_were_given_are_found_again(given: str, tmp_path: Path):
    torch.manual_seed(3)
    model = ByName()
    state = model.state_dict()
    names = {task: f"to_{task}" for task in TASKS}
    branches = names if given == "names" else {task: getattr(model, name) for task, name in names.items()}
    plan = dtme.Plan(TASKS, {"inner.blocks.1": TASKS})
    dtme.apply(model, plan, branches=branches)
    dtme.save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["branches"] == names
    fresh = ByName()
    fresh.load_state_dict(state)
    dtme.load_pretrained(fresh, tmp_path)
    for task, output in fresh(IMAGES).items():
        assert torch.equal(output, model(IMAGES)[task])
    fewer = ByName(("depth", "scene"))
    fewer.load_state_dict({name: tensor for name, tensor in state.items() if "semseg" not in name})
    dtme.load_pretrained(fewer, tmp_path, tasks=("depth",))
    assert dtme.plan_of(fewer) == dtme.Plan(("depth", "scene"), {"inner.blocks.1": ("depth",)})
    assert torch.equal(fewer(IMAGES)["depth"], model(IMAGES)["depth"])
    with pytest.raises(ValueError, match=r"branches\['semseg'\]='to_semseg': this model has no module of that name"):
        dtme.load_pretrained(dtme.remove(fewer), tmp_path)
