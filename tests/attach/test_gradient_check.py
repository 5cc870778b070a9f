"""An insert that gets no gradient on the first backward pass is named; training as it should be says nothing."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import TimmMultitask, TinyViT, make_batches, task_losses, timm_multitask, tiny_vit, torch_encoder_multitask
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import dtme
from dtme.attach.passed_by import check_entered
from dtme.streams.routing import begin_pass, end_pass

TASKS = ("depth", "semseg", "scene")
BLOCK = "trunk.blocks.{}".format
EVERY = dtme.Plan(
    TASKS, {BLOCK(1): TASKS, BLOCK(3): ("scene",)}, {BLOCK(2): TASKS, BLOCK(3): ("depth",)}, {BLOCK(3): TASKS}, rank=2
)
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def loss_of(outputs: dict[str, Tensor], *tasks: str) -> Tensor:
    return torch.stack([outputs[task].square().mean() for task in tasks or TASKS]).sum()


def hooks_of(model: nn.Module) -> list[Any]:
    """What is registered on a model and its parameters besides what leads every pass through the inserts."""
    on_parameters = [hook for p in model.parameters() for hook in (p._post_accumulate_grad_hooks or {}).values()]
    on_model = [*model._forward_hooks.values(), *model._forward_pre_hooks.values()]
    of_passes = (begin_pass, end_pass, check_entered)
    return [hook for hook in on_model if getattr(hook, "func", None) not in of_passes] + on_parameters


def said(action: Callable[[], Any]) -> list[str]:
    """The warnings of an action, one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    assert {warning.category for warning in caught} <= {UserWarning}
    assert len(caught) <= 1
    return [line for warning in caught for line in str(warning.message).splitlines()[1:]]


MODELS: dict[str, Callable[[], Any]] = {
    "by hand": lambda: tiny_vit(("depth", "semseg", "scene")),
    "timm": lambda: timm_multitask(("depth", "semseg", "scene")),
    "torch, batch first": lambda: torch_encoder_multitask(True, dropout=0.1),
    "torch, tokens first": lambda: torch_encoder_multitask(False),
}


def whole_plan(model: Any, **options: Any) -> dtme.Plan:
    blocks = list(dtme.find_blocks(model))
    adapted = {} if options else {blocks[3]: model.tasks}
    return dtme.Plan(model.tasks, {blocks[1]: model.tasks}, {blocks[2]: model.tasks}, adapted, **options)


@pytest.mark.parametrize("options", [{}, {"joint_tokens": True}, {"modulator": "batchnorm"}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_training_as_it_should_be_says_nothing_and_leaves_no_hook(name: str, options: dict[str, Any]):
    model = MODELS[name]()
    batches = make_batches(model, (3, 3, 2))
    dtme.apply(model, whole_plan(model, **options)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in batches:
        assert said(torch.stack([v.float() for v in task_losses(model, batch).values()]).sum().backward) == []
        assert hooks_of(model) == []  # from the first pass on
        optimiser.step()
        optimiser.zero_grad()


def test_a_loss_that_was_left_out_is_told_once():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    (line,) = said(loss_of(model(IMAGES), "depth", "scene").backward)
    assert line.startswith("Task 'semseg': none of its inserts. Its loss took no part")
    assert line.endswith("with dtme.tasks(model, 'depth', 'scene').")
    assert said(loss_of(model(IMAGES), "depth").backward) == []
    assert hooks_of(model) == []


def test_a_block_whose_output_no_loss_reads_is_named():
    class Early(TimmMultitask):
        def forward(self, image: Tensor) -> dict[str, Tensor]:
            last, (earlier,) = self.trunk.forward_intermediates(image, indices=[1], norm=True, output_fmt="NLC")
            tokens = torch.cat([earlier[:, :1], earlier], 1)
            return {task: head(last if task == "scene" else tokens) for task, head in self.heads.items()}

    torch.manual_seed(0)
    plan = dtme.Plan(TASKS, {BLOCK(1): TASKS, BLOCK(3): ("depth", "scene")}, {BLOCK(2): ("semseg",)}, {BLOCK(3): TASKS})
    model = dtme.apply(Early(TASKS), plan).train()
    lines = said(loss_of(model(IMAGES)).backward)
    assert [line.split(". What")[0] for line in lines] == [
        "Task 'depth': its modulator in block 'trunk.blocks.3'",
        "Task 'depth': its adaptation in block 'trunk.blocks.3'",
        "Task 'semseg': its task tokens in block 'trunk.blocks.2'",
        "Task 'semseg': its adaptation in block 'trunk.blocks.3'",
    ]


@pytest.mark.parametrize("how", ["no_grad", "detach"])
def test_a_trunk_that_is_cut_off_is_told(how: str):
    class CutOff(TimmMultitask):
        def forward(self, image: Tensor) -> dict[str, Tensor]:
            with torch.set_grad_enabled(how != "no_grad"):
                tokens = self.trunk.forward_features(image)
            return {task: head(tokens.detach()) for task, head in self.heads.items()}

    model = dtme.apply(CutOff(TASKS), EVERY).train()
    lines = said(loss_of(model(IMAGES)).backward)
    assert [line.split(":")[0] for line in lines] == [f"Task {task!r}" for task in TASKS]
    assert not any("dtme.tasks" in line for line in lines)


def test_tasks_that_are_left_out_by_name_or_row_wait_for_their_turn():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    with dtme.tasks(model, "depth"):
        assert said(loss_of(model(IMAGES), "depth").backward) == []
    with dtme.tasks(model, per_sample=["depth", "scene", "depth"]):
        outputs = model(IMAGES)
        loss = outputs["depth"][[0, 2]].square().mean() + outputs["scene"][1].square().mean()
        assert said(loss.backward) == []
    assert len(hooks_of(model)) == 1  # that of the model, for semseg
    (line,) = said(loss_of(model(IMAGES), "depth", "scene").backward)
    assert line.startswith("Task 'semseg': none of its inserts.")
    assert hooks_of(model) == []


def test_rows_whose_task_has_no_loss_are_told():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    with dtme.tasks(model, per_sample=["depth", "scene", "depth"]):
        (line,) = said(model(IMAGES)["depth"][[0, 2]].square().mean().backward)
    assert line.startswith("Task 'scene': none of its inserts.")


def test_losses_of_one_graph_may_be_propagated_one_after_another():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    outputs = model(IMAGES)
    for task in TASKS:
        assert said(lambda t=task: loss_of(outputs, t).backward(retain_graph=t != TASKS[-1])) == []
    assert hooks_of(model) == []


def test_where_every_graph_is_kept_the_next_forward_tells():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    outputs = model(IMAGES)
    assert said(lambda: loss_of(outputs, "depth").backward(retain_graph=True)) == []
    assert said(lambda: loss_of(outputs, "semseg").backward(retain_graph=True)) == []
    (line,) = said(lambda: model(IMAGES))
    assert line.startswith("Task 'scene': none of its inserts.")


def test_gradients_that_are_asked_for_and_not_accumulated_judge_nothing():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    outputs = model(IMAGES)
    assert said(lambda: torch.autograd.grad(outputs["depth"].sum(), list(model.parameters()), allow_unused=True)) == []
    assert said(loss_of(model(IMAGES)).backward) == []
    assert hooks_of(model) == []


def test_a_forward_whose_loss_is_never_propagated_judges_nothing():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    model(IMAGES)
    with dtme.tasks(model, "depth"):
        assert said(loss_of(model(IMAGES), "depth").backward) == []


def test_two_forwards_and_one_backward_are_one_step():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    losses = []
    for task in TASKS:
        with dtme.tasks(model, task):
            losses.append(loss_of(model(IMAGES), task))
    assert said(torch.stack(losses).sum().backward) == []
    assert hooks_of(model) == []


def test_evaluation_and_frozen_inserts_are_not_watched():
    model = dtme.apply(timm_multitask(TASKS), EVERY)
    assert said(loss_of(model.eval()(IMAGES), "depth").backward) == []
    for _, parameter in dtme.added_parameters(model):
        parameter.requires_grad_(False)
    assert said(loss_of(model.train()(IMAGES), "depth").backward) == []


def test_activation_checkpointing_and_autocast_say_nothing():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    twin = copy.deepcopy(model)
    model.trunk.set_grad_checkpointing()
    assert said(loss_of(model(IMAGES)).backward) == []
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(twin(IMAGES))
    assert said((loss * 2.0**16).backward) == []
    assert hooks_of(model) == hooks_of(twin) == []


def test_a_model_that_is_checkpointed_whole_is_watched_once():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    with set_checkpoint_early_stop(False):  # so that all of the forward is repeated, with what follows it
        outputs: Any = checkpoint(model, IMAGES, use_reentrant=False)
    lines = said(loss_of(outputs, "depth").backward)
    assert [line.split(":")[0] for line in lines] == ["Task 'semseg'", "Task 'scene'"]
    assert hooks_of(model) == []


def test_stochastic_depth_that_drops_a_whole_batch_is_no_fault():
    model = timm_multitask(TASKS)
    for block in model.trunk.blocks:
        block.drop_path1, block.drop_path2 = (type("DropPath", (nn.Module,), {"forward": lambda _, x: x * 0})(),) * 2
    dtme.apply(model, EVERY).train()
    assert said(loss_of(model(IMAGES)).backward) == []


def test_copies_are_watched_and_hooks_do_not_travel():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    outputs = model(IMAGES)  # the hooks of a pass are in place
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert len(hooks_of(twin)) == 1
        (line,) = said(loss_of(twin(IMAGES), "depth", "semseg").backward)
        assert line.startswith("Task 'scene'")
        assert hooks_of(twin) == []
    assert said(loss_of(outputs).backward) == []


def test_after_remove_nothing_is_watched():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    outputs = model(IMAGES)
    dtme.remove(model)
    assert hooks_of(model) == []
    assert said(loss_of(outputs, "depth").backward) == []


def test_an_error_on_the_way_back_starts_the_watch_anew():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    outputs = model(IMAGES)
    model.trunk.pos_embed.register_hook(lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss_of(outputs, "depth").backward()
    model.trunk.pos_embed._backward_hooks.clear()
    assert said(loss_of(model(IMAGES)).backward) == []
    assert hooks_of(model) == []


def test_the_warning_made_an_error_stops_the_watch():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()
    with pytest.raises(UserWarning, match="Task 'scene'"):
        loss_of(model(IMAGES), "depth", "semseg").backward()
    assert hooks_of(model) == []


def test_an_optimiser_in_the_backward_pass_is_no_fault():
    model = dtme.apply(timm_multitask(TASKS), EVERY).train()

    def step(parameter: Tensor) -> None:
        parameter.data.add_(parameter.grad, alpha=-1e-3)
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    assert said(loss_of(model(IMAGES)).backward) == []


def test_compiled_code_is_whole_and_not_watched():
    torch._dynamo.reset()
    model = dtme.apply(timm_multitask(TASKS), dtme.Plan(TASKS, {BLOCK(1): TASKS})).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert said(loss_of(compiled(IMAGES), "depth").backward) == []
    torch._dynamo.reset()
    (line, _) = said(loss_of(model(IMAGES), "depth").backward)
    assert line.startswith("Task 'semseg'")


def test_functional_calls_go_through():
    model = dtme.apply(tiny_vit(TASKS), dtme.Plan(TASKS, {"blocks.1": TASKS})).train()
    images = IMAGES[..., :16, :16]
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return loss_of(torch.func.functional_call(model, parameters, (images,)), "depth")

    assert said(lambda: torch.func.grad(loss)(values)) == []
    assert isinstance(model, TinyViT)
