"""No gradient in the first step is no fault where later ones bring some: LayerDrop, branches that begin at zero."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from small import TASKS, Block, Small, features
from torch import Tensor, nn

import dtme

EVERYTHING = dtme.Plan(
    TASKS, {"blocks.1": TASKS}, {"blocks.2": TASKS}, {"blocks.2": TASKS}, copies={"blocks.1.mlp": ("b",)}, rank=2
)


def said(model: nn.Module, *tasks: str, rows: list[str] | None = None) -> list[str]:
    """What is said in a training step on the losses of some tasks, one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if rows is None:
            outputs = model(features())
        else:
            with dtme.tasks(model, per_sample=rows):
                outputs = model(features())
            outputs = {task: out[[row == task for row in rows]] for task, out in outputs.items()}
        torch.stack([outputs[task].square().mean() for task in tasks or TASKS]).sum().backward()
    return [line for warning in caught for line in str(warning.message).splitlines()[1:]]


class Dropping(Small):
    """Some blocks do not run in training."""

    skipped: tuple[int, ...] = ()

    def trunk(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for place, block in enumerate(self.blocks):
            x = x if place in self.skipped else block(x)
        return self.norm(x)


class Gated(Block):
    """Both branches are multiplied by a number that begins at zero, as in ReZero, LayerScale and adaLN-Zero."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gate[0] * self.attn(self.norm1(x))
        return x + self.gate[1] * self.mlp(self.norm2(x))


class Returning(Block):
    """It hands its tokens on as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("skipped", [(1,), (2,), (1, 2)])
def test_a_block_that_does_not_run_is_no_fault(skipped: tuple[int, ...]):
    model: Any = dtme.apply(Dropping(), EVERYTHING).train()
    model.skipped = skipped
    assert said(model) == []


def test_a_loss_that_is_left_out_is_told_where_other_blocks_run():
    model: Any = dtme.apply(Dropping(), EVERYTHING).train()
    model.skipped = (1,)
    (line,) = said(model, "a")
    assert line.startswith("Task 'b': none of its inserts")


@pytest.mark.parametrize("rows", [None, ["a", "b", "b", "a"]], ids=["all", "rows"])
@pytest.mark.parametrize(
    "plan",
    [
        EVERYTHING,
        dtme.Plan(TASKS, expand={"blocks.0": TASKS}),
        dtme.Plan(TASKS, {"blocks.0": ("a",)}, adapt={"blocks.1.mlp": ("b",), "blocks.2.attn": TASKS}),
        dtme.Plan(TASKS, copies={"blocks.1.attn": ("a",), "blocks.2": ("b",)}),
    ],
    ids=["everything", "task tokens", "parts", "copies"],
)
def test_branches_that_begin_at_zero_are_no_fault(plan: dtme.Plan, rows: list[str] | None):
    assert said(dtme.apply(Small(Gated), plan).train(), rows=rows) == []


def test_a_loss_that_is_left_out_is_told_behind_branches_that_begin_at_zero():
    model = dtme.apply(Small(Gated), EVERYTHING).train()
    (line,) = said(model, "b")
    assert line.startswith("Task 'a': none of its inserts")


def test_rows_of_a_task_without_a_loss_are_told_behind_branches_that_begin_at_zero():
    model = dtme.apply(Small(Gated), EVERYTHING).train()
    (line,) = said(model, "b", rows=["a", "b", "b", "b"])
    assert line.startswith("Task 'a': none of its inserts")


def test_a_block_that_hands_its_tokens_on_is_no_fault():
    assert (
        said(
            dtme.apply(
                Small(Returning), dtme.Plan(TASKS, expand={"blocks.1": TASKS}, copies={"blocks.2": TASKS})
            ).train()
        )
        == []
    )


@pytest.mark.parametrize("how", ["detached", "no_grad"])
def test_a_part_that_is_cut_off_inside_its_block_is_told(how: str):
    class Cut(Block):
        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(how != "no_grad"):
                mixed = self.attn(self.norm1(x))
            x = x + mixed.detach()
            return x + self.mlp(self.norm2(x))

    plan = dtme.Plan(TASKS, {"blocks.1.attn": TASKS, "blocks.2": TASKS})
    lines = said(dtme.apply(Small(Cut), plan).train())
    assert [line.split(". What")[0] for line in lines] == [
        f"Task {task!r}: its modulator in block 'blocks.1.attn'" for task in TASKS
    ]


def test_copies_of_a_model_watch_for_themselves():
    model = dtme.apply(Small(Gated), EVERYTHING).train()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        (line,) = said(twin, "b")
        assert line.startswith("Task 'a'")
    assert said(model) == []


def test_gradients_of_several_losses_at_once_are_no_values_to_look_at():
    model = dtme.apply(Small(), EVERYTHING).train()
    losses = torch.stack([out.square().mean() for out in model(features()).values()])
    weight: Any = model.blocks[0].norm1.weight  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    (together,) = torch.autograd.grad(losses, weight, torch.eye(2).double(), retain_graph=True, is_grads_batched=True)
    for place, loss in enumerate(losses):
        torch.testing.assert_close(together[place], torch.autograd.grad(loss, weight, retain_graph=True)[0])
    assert said(model) == []


def test_evaluation_keeps_nothing():
    model = dtme.apply(Small(), EVERYTHING).eval()
    applied: Any = vars(model)["_dtme"]
    for _ in range(3):
        model(features())
        assert applied.first_backward.take_runs() == []
