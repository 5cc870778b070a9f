"""What task_losses gives, and which of it are tasks: names, shapes, sums of the others, heads that nothing is read of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Batch, loss, make_batches, task_losses, tiny_vit
from torch import Tensor, nn

import dtme
from dtme.measure.losses import weights_of_sum

TASKS = ("depth", "semseg", "scene")


def with_losses(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[nn.Module, Batch], Any]:
    """The losses of a batch, as `change` gives them instead."""
    return lambda model, batch: change(task_losses(model, batch))


def analyze(losses: Any, **options: Any) -> dtme.ConflictReport:
    model = tiny_vit(TASKS)
    return dtme.analyze(model, losses, make_batches(model, (3, 2)), **options)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda losses: list(losses.values()),
            "task_losses returned a list of 3, which does not say whose each loss is",
        ),
        (lambda losses: tuple(losses.values()), "task_losses returned a tuple of 3.*Return a dictionary"),
        (lambda losses: sum(losses.values()), "task_losses returned one tensor. Return a dictionary"),
        (lambda losses: None, r"task_losses returned None \\(is its return missing\\?\\)".replace("\\\\", "\\")),
        (lambda losses: dict(enumerate(losses.values())), r"the name of a task is 0 \(int\).*by strings: '0'"),
    ],
    ids=["list", "tuple", "tensor", "none", "integer names"],
)
def test_what_is_no_dictionary_of_losses_by_name(change: Any, says: str):
    for kind in (TypeError, ValueError):
        with pytest.raises(kind, match=says):
            analyze(with_losses(change))


def test_a_loss_per_sample():
    def per_sample(losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**losses, "depth": losses["depth"].expand(3)}

    with pytest.raises(
        ValueError, match=r"task 'depth' is no scalar tensor but \(3,\), a loss per sample. Reduce it, .mean"
    ):
        analyze(with_losses(per_sample))


def heads_of_a_whole(trunk: nn.Module) -> nn.ModuleDict:
    """A dictionary of a stem, a trunk and heads, one of which nothing is read of."""
    width = 8
    return nn.ModuleDict(
        {
            "emb": nn.Linear(3, width),
            "trunk": trunk,
            **{task: nn.Linear(width, 1) for task in ("a", "b", "unlabelled")},
        }
    )


def losses_of_heads(model: Any, batch: Tensor) -> dict[str, Tensor]:
    tokens = model["trunk"](model["emb"](batch))
    return {task: (model[task](tokens) - place).square().mean() for place, task in enumerate(("a", "b"))}


def test_keys_that_no_loss_is_given_for_are_no_tasks():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = heads_of_a_whole(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    batches = [torch.randn(4, 5, 3)]
    report = dtme.analyze(model, losses_of_heads, batches)
    assert report.tasks == ("a", "b")
    (note,) = [note for note in report.notes if "no task" in note]
    assert note.startswith("'emb', 'trunk', 'unlabelled': a branch in the model, but no loss in what was read")
    assert note in str(report)
    named = dtme.analyze(model, losses_of_heads, batches, tasks=["b", "a"])
    assert named.tasks == ("b", "a")
    assert not any("no task" in note for note in named.notes)
    torch.testing.assert_close(named.range_rate, report.range_rate)  # symmetric: of two tasks, either order is the same


def test_tasks_are_those_that_are_named_in_their_order():
    def more(losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**losses, "broken": torch.tensor(torch.nan), "total": torch.stack([*losses.values()]).sum()}

    report = analyze(with_losses(more), tasks=["scene", "depth"])
    assert report.tasks == ("scene", "depth")
    whole = analyze(task_losses)
    assert report.range_rate[:, 0, 1].tolist() == whole.range_rate[:, 2, 0].tolist()


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ("depth", "tasks='depth' is a string: give a list"),
        (["depth"], r"tasks=\['depth'\]: name at least two tasks, each once"),
        (["depth", "depth"], "name at least two tasks, each once"),
        (["depth", 3], "3 is no string"),
        (["depth", "height"], r"no batch gave a loss for 'height', but for \['depth'\]"),
    ],
)
def test_tasks_that_cannot_be_meant(tasks: Any, says: str):
    with pytest.raises(ValueError, match=says):
        analyze(task_losses, tasks=tasks)


SUMS: dict[str, tuple[str, Callable[[dict[str, Tensor]], Tensor]]] = {
    "plain": ("total", lambda losses: torch.stack([*losses.values()]).sum()),
    "weighted, with decay": ("loss", lambda losses: 0.3 * losses["depth"] + 2 * losses["scene"] + 7),
    "called by any name": ("objective", lambda losses: losses["depth"] + 0.5 * losses["semseg"] + losses["scene"]),
    "of the logarithms": ("overall", lambda losses: sum(own.log() for own in losses.values())),
}  # type: ignore[dict-item]


@pytest.mark.parametrize("kind", SUMS)
def test_a_sum_of_the_others_is_no_task(kind: str):
    name, added = SUMS[kind]

    def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        found = task_losses(model, batch)
        return {**found, name: added(found)}

    with pytest.raises(ValueError, match=rf"{name!r}.*leave it out of what task_losses returns.*tasks=\[\.\.\.\]"):
        analyze(losses)
    asked = analyze(losses, tasks=[*TASKS, name])
    assert asked.tasks == (*TASKS, name)
    assert analyze(losses, tasks=TASKS).tasks == TASKS


def test_a_sum_is_told_by_its_gradient_where_heads_are_no_dictionary():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = tiny_vit(TASKS)

    def losses(model: Any, batch: Tensor) -> dict[str, Tensor]:
        tokens = model.trunk.embed(batch)
        for block in model.trunk.blocks:
            tokens = block(tokens)
        own = {"a": tokens[..., 0].square().mean(), "b": tokens[..., 1].cos().mean()}
        return {**own, "total_loss": own["a"] + 3 * own["b"]}

    with pytest.raises(ValueError, match=r"the loss of 'total_loss' is the sum 1 × 'a' \+ 3 × 'b' of others"):
        dtme.analyze(Model(), losses, [torch.randn(4, 3, 16, 16)], blocks=r"trunk\.blocks\.\d")


@pytest.mark.parametrize(("name", "branch"), [("consistency", False), ("depth_loss", True), ("loss", True)])
def test_a_task_that_is_no_sum_is_left_alone(name: str, branch: bool):
    """One without a branch, and ones whose names tell of a loss."""
    tasks = (*TASKS, name) if branch else TASKS
    model = tiny_vit(tasks)

    def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        outputs: Any = model(*batch["inputs"])
        found = {task: loss(outputs[task], target) for task, target in batch["targets"].items()}
        beside = (outputs["depth"] - outputs["semseg"][:, :1]).square().mean()
        return found if branch else {**found, name: beside}

    assert dtme.analyze(model, losses, make_batches(model, (3, 2))).tasks == (*TASKS, name)


def test_weights_of_a_sum():
    torch.manual_seed(0)
    one, two = torch.randn(2, 2, 5, 6).unbind()
    gradients = {"a": one, "b": two, "sum": 0.25 * one + 4 * two, "difference": one - two}
    assert weights_of_sum("sum", {name: gradients[name] for name in ("a", "b", "sum")}) == {"a": 0.25, "b": 4.0}
    for other in ("a", "difference"):
        assert weights_of_sum(other, {name: gradients[name] for name in ("b", "sum", other)}) in ({}, {"sum": 4.0})
    assert weights_of_sum("b", {"a": one, "b": two}) == {}
    assert weights_of_sum("b", {"a": one, "b": torch.zeros_like(two)}) == {}
    assert weights_of_sum("c", {"a": one, "b": two}) == {}


def test_branches_that_have_changed_places():
    model = tiny_vit(TASKS)
    right: dict[str, Any] = {task: f"heads.{task}" for task in TASKS}
    batches = make_batches(model, (3, 2))
    report = dtme.analyze(model, task_losses, batches, branches={**right, "depth": model.heads["depth"]})
    assert report.tasks == TASKS
    swapped = {**right, "depth": "heads.scene", "scene": "heads.depth"}
    with pytest.raises(ValueError, match=r"loss of task 'depth' depends on the branch of 'scene' and not on its own"):
        dtme.analyze(model, task_losses, batches, branches=swapped)


@pytest.mark.parametrize(
    ("branches", "says"),
    [
        ({"depth": "heads.depth"}, r"branches names \('depth',\), and losses came for"),
        (dict.fromkeys(TASKS, "heads.depth"), "leave by the same module"),
        ({**{task: f"heads.{task}" for task in TASKS}, "scene": "head"}, "this model has no module of that name"),
    ],
)
def test_branches_that_do_not_fit(branches: Any, says: str):
    with pytest.raises(ValueError, match=says):
        analyze(task_losses, branches=branches)
