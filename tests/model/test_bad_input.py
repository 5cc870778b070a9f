"""Bad input gets an error that names the argument, its value and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Batch, make_batches, task_losses, timm_multitask, tiny_vit
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

import dtme

TASKS = ("depth", "semseg", "scene")
Losses = Callable[[nn.Module, Batch], dict[str, Tensor]]


def changed(change: Callable[[dict[str, Tensor], int], Any]) -> Losses:
    """Losses changed, knowing how many batches were seen before."""
    seen: list[int] = []

    def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        found = task_losses(model, batch)
        change(found, len(seen))
        seen.append(1)
        return found

    return losses


def detached(losses: dict[str, Tensor], batch: int) -> None:
    losses["semseg"] = losses["semseg"].detach()


def infinite(losses: dict[str, Tensor], batch: int) -> None:
    if batch == 1:
        losses["scene"] = losses["scene"] / 0


def late(losses: dict[str, Tensor], batch: int) -> None:
    if batch == 2:
        losses["height"] = losses["depth"]


LOSSES: dict[str, tuple[Losses, str]] = {
    "one task": (lambda model, batch: {"depth": task_losses(model, batch)["depth"]}, r"losses for \['depth'\]: conflicts need"),
    "no task": (lambda model, batch: {}, r"losses for \[\]: conflicts need at least two tasks"),
    "not finite": (changed(infinite), r"loss of task 'scene' is inf in batch 1; all tokens .*the last is 'blocks\.3'"),
    "not reaching the trunk": (changed(detached), "loss of task 'semseg' does not reach the trunk.*detached"),
    "not reduced": (changed(lambda losses, _: losses.update(depth=torch.ones(2))), r"'depth' is no scalar tensor but \(2,\)"),
    "not a tensor": (changed(lambda losses, _: losses.update(depth=1.0)), "'depth' is no scalar tensor but float"),
    "a task of the second round": (changed(late), r"task 'height' in batch 0 of the second round, unknown in the first"),
}  # fmt: skip


@pytest.mark.parametrize("fault", LOSSES)
def test_losses(fault: str):
    losses, says = LOSSES[fault]
    model = tiny_vit(TASKS)
    with pytest.raises(ValueError, match=says):
        dtme.analyze(model, losses, make_batches(model, (2, 2)))


def test_tokens_that_are_not_finite_name_task_block_and_batch():
    model = tiny_vit(TASKS)
    batches = make_batches(model, (2, 2))
    with torch.no_grad():
        model.blocks[1].mlp[2].bias[0] = torch.inf
    with pytest.raises(
        ValueError, match=r"loss of task 'depth' is nan in batch 0; the first .* enter block 'blocks\.2'"
    ):
        dtme.analyze(model, task_losses, batches)


def test_a_gradient_that_is_not_finite_names_task_block_and_batch():
    def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        found = task_losses(model, batch)
        return {**found, "depth": (found["depth"] * 0).sqrt()}

    model = tiny_vit(TASKS)
    with pytest.raises(
        ValueError, match=r"gradient of task 'depth' by the tokens entering block 'blocks\.0' .* in batch 0"
    ):
        dtme.analyze(model, losses, make_batches(model, (2,)))


@pytest.mark.parametrize("empty", [[], iter([]), (batch for batch in ())])
def test_an_empty_loader(empty: Any):
    with pytest.raises(ValueError, match="batches is empty: analyze needs at least one batch"):
        dtme.analyze(tiny_vit(TASKS), task_losses, empty)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"blocks": "layers.*"}, r"blocks='layers\.\*' matches the whole name of no module. Candidates: blocks\.\*"),
        ({"blocks": [7]}, "there is no block 7; this model has 4 blocks"),
        (
            {"blocks": ["heads.scene"]},
            r"the loss of task 'depth' does not reach the trunk: no token that enters heads\.scene",
        ),
        ({"blocks": "heads"}, "no block ran while the losses of batch 0 were computed: heads"),
        ({"variance_ratio": 0}, "variance_ratio=0: give a positive number"),
        ({"variance_ratio": float("inf")}, "variance_ratio=inf"),
        ({"confidence": 95}, "confidence=95: give a level between 0 and 1"),
        ({"max_samples": 0}, "max_samples=0: give at least 1"),
    ],
)
def test_options_of_analyze(options: dict[str, Any], says: str):
    model = tiny_vit(TASKS)
    with pytest.raises(ValueError, match=says):
        dtme.analyze(model, task_losses, make_batches(model, (2,)), **options)


def test_a_model_without_blocks():
    with pytest.raises(ValueError, match="blocks=None: no transformer blocks were found"):
        dtme.analyze(nn.Linear(2, 2), task_losses, [1])


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (dtme.Plan(TASKS, {"blocks.9": TASKS}), r"no block 'blocks\.9'. Its blocks: blocks\.0, .*blocks\.3"),
        (
            dtme.Plan(("depth", "height"), {"blocks.1": ("height",)}),
            r"branches: no ModuleDict.*'depth', 'semseg', 'scene'",
        ),
        (dtme.Plan(("depth", "scene"), {"blocks.1": ("depth",)}), "branch for 'semseg', a task that the plan"),
        (dtme.Plan(TASKS, {"blocks": TASKS}), "plan: 'blocks' is a ModuleList.*Name the blocks inside it"),
        (dtme.Plan(TASKS, {"heads": TASKS}), "plan: 'heads' is a ModuleDict"),
        (dtme.Plan(TASKS, adapt={"blocks.1": TASKS}, adapt_layers="none"), "has no linear layer to adapt that matches"),
    ],
)
def test_plans_that_do_not_fit_change_nothing(plan: dtme.Plan, says: str):
    model = tiny_vit(TASKS)
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=says):
        dtme.apply(model, plan)
    assert list(model.state_dict()) == keys
    assert dtme.plan_of(model) is None
    dtme.apply(model, dtme.Plan(TASKS, {"blocks.1": TASKS}))


def test_tokens_of_another_width_name_the_block():
    model = tiny_vit(TASKS)
    model.blocks[2].norm1 = nn.LayerNorm(8)  # what the width is read off
    dtme.apply(model, dtme.Plan(TASKS, {"blocks.2": TASKS}))
    with pytest.raises(ValueError, match=r"tokens of 16 channels enter block 'blocks\.2'; its insert was made for 8"):
        model(torch.zeros(1, 3, 16, 16))


def test_applying_twice_and_removing_twice():
    model, plan = tiny_vit(TASKS), dtme.Plan(TASKS, {"blocks.1": TASKS})
    assert list(dtme.added_parameters(model)) == []
    dtme.apply(model, plan)
    for again in (model, nn.Sequential(model)):
        with pytest.raises(ValueError, match=r"has inserts already. Call dtme\.remove"):
            dtme.apply(again, plan)
    assert dtme.remove(model) is model
    assert dtme.remove(model) is model


class SwinMultitask(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = SwinTransformer(
            img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), num_classes=0
        )
        self.heads = nn.ModuleDict({task: nn.Linear(16, 1) for task in "ab"})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        tokens = self.trunk.forward_features(image)
        return {task: head(tokens) for task, head in self.heads.items()}


def test_task_tokens_have_no_place_on_a_grid_and_modulators_do():
    model, image = SwinMultitask().eval(), torch.randn(2, 3, 16, 16)
    plain = model(image)
    first = "trunk.layers.0.blocks.1"
    dtme.apply(model, dtme.Plan(("a", "b"), {first: ("a", "b")}))
    torch.testing.assert_close(model(image), plain)
    with torch.no_grad():
        model.get_submodule(first).dtme.shift[1].normal_()
    torch.testing.assert_close(model(image)["a"], plain["a"])
    assert not torch.allclose(model(image)["b"], plain["b"])
    dtme.remove(model)
    with pytest.raises(ValueError, match=r"pairs of its 16 positions.*report\.plan\(expansion=False\)"):
        dtme.apply(model, dtme.Plan(("a", "b"), expand={first: ("a", "b")}))


def test_a_batch_of_one_sample():
    model = tiny_vit(TASKS)
    report = dtme.analyze(model, task_losses, make_batches(model, (1,)))
    assert report.samples == 1
    assert report.range_halfwidth[0, 0, 1] == torch.inf
    assert "inf" in str(report)
    dtme.apply(model, report.plan())
    assert all(len(output) == 1 for output in model(torch.zeros(1, 3, 16, 16)).values())


def test_an_odd_final_batch():
    model = tiny_vit(TASKS)
    batches = make_batches(model, (4, 4, 1))
    report = dtme.analyze(model, task_losses, batches)
    assert report.samples == 9
    joined = {
        "inputs": (torch.cat([batch["inputs"][0] for batch in batches]),),
        "targets": {task: torch.cat([batch["targets"][task] for batch in batches]) for task in TASKS},
    }
    whole = dtme.analyze(model, task_losses, [joined])
    torch.testing.assert_close(report.range_rate, whole.range_rate, rtol=0, atol=0.05)
    dtme.apply(model, report.plan())
    for batch in batches:
        sum(task_losses(model, batch).values()).backward()  # type: ignore[union-attr]


def test_confidence_stops_early_or_says_what_is_open():
    model = timm_multitask(TASKS)
    batches = make_batches(model, (8,) * 4)
    report = dtme.analyze(model, task_losses, batches, confidence=0.9)
    assert report.level == 0.9
    assert report.samples < 32 or set(report.undecided) <= set(report.blocks)
    assert report.undecided or report.samples >= 16
