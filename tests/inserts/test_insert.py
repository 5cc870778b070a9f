"""Inserts are told by what they are and not by names; they begin in a type wide enough to learn, wherever they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import TASKS, Small, assert_each_task_is_alone, features, planned
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import dtme


class Holder(nn.Module):
    """A user's wrapper that calls what it holds `dtme`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.dtme = model

    def forward(self, x: Tensor) -> Any:
        return self.dtme(x)


def other(model: nn.Module) -> nn.Module:
    """The same model with other weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def test_a_module_of_the_users_called_dtme_is_saved_whole_and_trained(tmp_path: Path):
    model = Holder(Small())
    dtme.apply(model, dtme.Plan(TASKS, {"dtme.blocks.1": TASKS})).train()
    torch.stack([out.square().mean() for out in model(features()).values()]).sum().backward()
    assert {name for name, _ in dtme.added_parameters(model)} == {
        f"dtme.blocks.1.dtme.{own}" for own in ("scale", "shift")
    }
    dtme.save_pretrained(model, tmp_path, base=True)
    again = dtme.load_pretrained(other(Holder(Small())), tmp_path)
    torch.testing.assert_close(again(features()), model(features()))


def test_a_task_called_dtme(tmp_path: Path):
    tasks = ("dtme", "b")
    base = Small(tasks=tasks)
    model = planned(base, modulate={"blocks.1": tasks}).train()
    torch.stack([out.square().mean() for out in model(features()).values()]).sum().backward()
    assert_each_task_is_alone(base, model, features())
    dtme.save_pretrained(model, tmp_path, base=True)
    again = dtme.load_pretrained(other(Small(tasks=tasks)), tmp_path)
    torch.testing.assert_close(again(features()), model(features()))


def test_a_child_of_a_block_called_dtme_is_not_overwritten():
    base: Any = Small()
    base.blocks[1].dtme = nn.Linear(8, 8)
    with pytest.raises(ValueError, match=r"block 'blocks\.1' has an attribute called 'dtme' of its own.*Rename it"):
        dtme.apply(base, dtme.Plan(TASKS, {"blocks.1": TASKS}))
    assert isinstance(base.blocks[1].dtme, nn.Linear)


@pytest.mark.parametrize("how", ["prune", "spectral norm", "weight norm", "parametrized"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_copies_of_layers_whose_weight_is_made_learn(how: str):
    base: Any = Small()
    layer = base.blocks[2].mlp.fc2
    if how == "prune":
        prune.l1_unstructured(layer, "weight", amount=0.5)
    elif how == "spectral norm":
        torch.nn.utils.spectral_norm(layer)
    elif how == "weight norm":
        torch.nn.utils.weight_norm(layer)
    else:
        parametrizations.weight_norm(layer)
    base.eval()
    with torch.no_grad():
        base(features())
    model = dtme.apply(base, dtme.Plan(TASKS, copies={"blocks.2.mlp.fc2": ("b",)})).eval()
    before = model(features())
    with torch.no_grad():
        for parameter in model.blocks[2].mlp.fc2.dtme.copies[0].parameters():  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
            if parameter.ndim > 1:
                parameter.mul_(torch.linspace(0.5, 2, parameter.numel()).view_as(parameter))
    after = model(features())
    assert torch.equal(after["a"], before["a"])
    assert not torch.allclose(after["b"], before["b"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inserts_beside_a_narrower_base_are_float32_and_learn(dtype: torch.dtype):
    model = Small().to(dtype)
    plan = dtme.Plan(
        TASKS, {"blocks.1": TASKS}, {"blocks.1": TASKS}, {"blocks.2": TASKS}, copies={"blocks.1.mlp.fc1": ("b",)}
    )
    dtme.apply(model, plan)
    mine = [parameter for name, parameter in dtme.added_parameters(model) if ".copies." not in name]
    assert {parameter.dtype for parameter in mine} == {torch.float32}
    optimizer = torch.optim.AdamW(mine, lr=1e-3, weight_decay=0.0)
    x = features(8).to(dtype)
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack(
            [(out.float() - place).square().mean() for place, out in enumerate(model(x).values())]
        ).sum().backward()
        optimizer.step()
    assert float((model.blocks[1].dtme.scale.detach() - 1).abs().max()) > 0.02  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def test_a_grad_scaler_steps_inserts_of_a_float16_base():
    model = Small().half()
    dtme.apply(model, dtme.Plan(TASKS, {"blocks.1": TASKS}))
    mine = [parameter for _, parameter in dtme.added_parameters(model)]
    optimizer, scaler = torch.optim.SGD(mine, lr=1.0), torch.amp.GradScaler("cpu", init_scale=128.0)  # pyright: ignore[reportPrivateImportUsage]
    loss = torch.stack([out.float().square().mean() for out in model(features().half()).values()]).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(bool(parameter.any()) for parameter in mine)


def test_inserts_made_on_the_meta_device_are_made_anew_by_reset_parameters():
    with torch.device("meta"):
        model = Small()
    plan = dtme.Plan(TASKS, {"blocks.1": TASKS}, {"blocks.1": TASKS}, {"blocks.2": TASKS}, modulator="batchnorm")
    dtme.apply(model, plan).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(7)  # what memory happens to hold
    model.load_state_dict(Small().state_dict(), strict=False)
    for module in model.modules():
        if type(module).__module__.startswith("dtme") and hasattr(module, "reset_parameters"):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]
    fresh = dtme.apply(Small(), plan)
    drawn = ("tokens", "down")
    for (name, own), (_, expected) in zip(dtme.added_parameters(model), dtme.added_parameters(fresh), strict=True):
        if name.endswith(drawn):
            assert 0 < float(own.detach().abs().max()) < 3
        else:
            torch.testing.assert_close(own, expected)
    torch.testing.assert_close(dict(model.named_buffers()), dict(fresh.named_buffers()))


def test_apply_within_inference_mode_makes_what_can_be_trained():
    model = Small()
    with torch.inference_mode():
        dtme.apply(
            model,
            dtme.Plan(
                TASKS,
                {"blocks.1": TASKS},
                {"blocks.1": TASKS},
                {"blocks.2": TASKS},
                copies={"blocks.1.mlp.fc1": ("b",)},
            ),
        )
        assert all(out.is_inference() for out in model(features()).values())
    assert not any(parameter.is_inference() for parameter in model.parameters())
    torch.stack([out.square().mean() for out in model(features()).values()]).sum().backward()
    assert all(parameter.grad is not None for _, parameter in dtme.added_parameters(model))
